//! Virtual machines in pods.

use crate::{pair, shell};

/// A bridge in the pod joins its link and the guest's, and the guest takes over both kinds of address. It knows no neighbour:
/// the gateway has to answer ARP and neighbour solicitations.
#[test]
fn a_guest_behind_a_bridge_in_its_pod_reaches_other_nodes_and_is_reached() {
    let mesh = pair();
    let [n1, n2] = ["n1", "n2"].map(|name| mesh.node(name).unwrap());
    let (pod, other) = (n1.pod("a").unwrap(), n2.pod("a").unwrap());
    let (_guest, _) = n1.sandbox("guest").unwrap();
    let [v4, v6] = [pod.addresses()[0], pod.addresses()[1]];
    let script = format!(
        "mac=$(ip -o link show eth0 | grep -o 'ether [^ ]*' | cut -d' ' -f2)
         ip addr flush dev eth0 scope global; ip link set eth0 address 02:00:00:00:00:99
         ip link add bridge type bridge; ip link set bridge up; ip link set eth0 master bridge
         ip link add tap master bridge type veth peer name eth0 netns guest; ip link set tap up
         ip -n guest link set eth0 address $mac up
         ip -n guest addr add {v4}/32 dev eth0
         ip -n guest addr add {v6}/128 dev eth0 nodad
         ip -n guest route add default via 169.254.1.1 dev eth0 onlink
         ip -n guest route add default via fe80::1 dev eth0"
    );
    pod.command("sh").args(["-ec", &script]).run().unwrap();
    // Not a probe of the lab's: that would find the answer to come from another namespace than the pod's.
    let ping = "ping -n -c 1 -w 20";
    for (of_guest, of_other) in pod.addresses().iter().zip(other.addresses()) {
        shell(n1, &format!("nsenter --net=/run/netns/guest {ping} {of_other}"));
        other.command("sh").args(["-ec", &format!("{ping} {of_guest}")]).run().unwrap();
    }
}
