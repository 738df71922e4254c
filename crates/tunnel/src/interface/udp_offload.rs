//! Whether the kernel may cut one message into many datagrams and join those that arrive (`UDP_SEGMENT` and `UDP_GRO`,
//! udp(7)), for the sockets of one interface.
//!
//! Some kernels refuse it on some devices, and some do it wrong. A test over loopback finds a kernel that does not know
//! it, or ignores it, before the first packet. It can't find a driver that fails, because loopback has none: batches that
//! are refused are sent one by one, and when that repeats, no more are made. Only the receiver sees that batches arrive
//! damaged; where it says so, they end for its address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};

use super::config::OffloadOption;
use super::mmsg::{Inbox, Message};

/// Sends the first messages, as [`send`](super::mmsg::send) does; tests have kernels of their own.
pub(super) type SendMessages = fn(BorrowedFd<'_>, &[Message<'_>]) -> Result<usize, Errno>;

/// How many batches in a row are refused before no more are made. A route may be new, or about to be replaced.
const REFUSALS: u32 = 4;
/// The largest payload that fits every path: the least MTU of IPv6 (RFC 8200 section 5) less the IPv6 and UDP headers. The
/// kernel refuses segments beyond the path MTU with `EINVAL` as well, which says nothing about batches.
const FITS_EVERY_PATH: u16 = 1_280 - 48;
/// How many addresses are kept at which batches arrive damaged. A peer that lies and roams could add one after the other.
const MOST_DAMAGED: usize = 4_096;
/// How long the test over loopback waits. Loopback delivers within the sending call.
const LOOPBACK_WAIT: Duration = Duration::from_millis(100);

/// What one interface knows about segmentation by the kernel.
#[derive(Debug)]
pub struct UdpOffload {
    option: OffloadOption,
    /// Name of the device, for the log.
    link: String,
    v4: Family,
    v6: Family,
    /// Where batches arrive damaged.
    damaged_at: ArcSwap<BTreeSet<SocketAddr>>,
}

#[derive(Debug, Default)]
struct Family {
    off: AtomicBool,
    refused_in_a_row: AtomicU32,
    refused: AtomicU64,
}

impl UdpOffload {
    /// Segmentation as far as the kernel supports it; `link` names who uses it in the log.
    pub fn automatic(link: &str) -> Self {
        Self::new(link, OffloadOption::Auto, super::mmsg::send)
    }

    /// Tests it in the namespace of the calling thread, if that is left to us.
    pub(super) fn new(link: &str, option: OffloadOption, send: SendMessages) -> Self {
        let (v4, v6) = (Family::default(), Family::default());
        let offload = Self { option, link: link.to_owned(), v4, v6, damaged_at: ArcSwap::default() };
        match option {
            OffloadOption::On => {}
            OffloadOption::Off => offload.switch_all_off(),
            OffloadOption::Auto => {
                if works_on_loopback(send) == Some(false) {
                    offload.switch_all_off();
                    offload.say("datagrams did not arrive over loopback as they were sent");
                }
            }
        }
        offload
    }

    /// Whether messages to `to` may hold several datagrams.
    pub(super) fn is_on(&self, to: SocketAddr) -> bool {
        !self.family(to).off.load(Ordering::Relaxed) && !self.damaged_at.load().contains(&to)
    }

    /// Makes no more batches for `to`, because they arrive damaged there. Returns whether some were made.
    pub(super) fn switch_off_for(&self, to: SocketAddr) -> bool {
        if self.option != OffloadOption::Auto || !self.is_on(to) {
            return false;
        }
        let mut damaged_at = BTreeSet::clone(&self.damaged_at.load());
        if damaged_at.len() >= MOST_DAMAGED {
            return false;
        }
        damaged_at.insert(to);
        self.damaged_at.store(Arc::new(damaged_at));
        true
    }

    /// Whether it is used for either family.
    pub(super) fn is_used(&self) -> bool {
        [&self.v4, &self.v6].iter().any(|family| !family.off.load(Ordering::Relaxed))
    }

    /// How many batches the kernel refused that it took one by one.
    pub(super) fn refused_batches(&self) -> u64 {
        [&self.v4, &self.v6].iter().map(|family| family.refused.load(Ordering::Relaxed)).sum()
    }

    /// Takes that the kernel took `messages`.
    pub(super) fn note_accepted(&self, messages: &[Message<'_>]) {
        let Some(batch) = messages.iter().find(|message| message.segment.is_some()) else { return };
        let in_a_row = &self.family(batch.to).refused_in_a_row;
        if in_a_row.load(Ordering::Relaxed) != 0 {
            in_a_row.store(0, Ordering::Relaxed);
        }
    }

    /// Takes that the kernel refused `batch`, and then took its datagrams one by one.
    pub(super) fn note_refused(&self, batch: &Message<'_>, errno: Errno) {
        let family = self.family(batch.to);
        family.refused.fetch_add(1, Ordering::Relaxed);
        let fits = batch.segment.is_none_or(|segment| segment <= FITS_EVERY_PATH);
        let counts = match errno {
            // A device on the way can't compute checksums; one can't cut; the kernel knows no such option.
            Errno::EIO | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT => true,
            Errno::EINVAL | Errno::EMSGSIZE => fits,
            _ => false,
        };
        if !counts || self.option != OffloadOption::Auto {
            return;
        }
        let in_a_row = family.refused_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        if in_a_row >= REFUSALS && !family.off.swap(true, Ordering::Relaxed) {
            let version = if batch.to.is_ipv4() { "IPv4" } else { "IPv6" };
            self.say(&format!("the kernel refused {in_a_row} batches over {version} in a row: {errno}"));
        }
    }

    const fn family(&self, to: SocketAddr) -> &Family {
        if to.is_ipv4() { &self.v4 } else { &self.v6 }
    }

    fn switch_all_off(&self) {
        for family in [&self.v4, &self.v6] {
            family.off.store(true, Ordering::Relaxed);
        }
    }

    fn say(&self, error: &str) {
        tracing::warn!(
            event = "UdpOffloadOff",
            link = self.link,
            error,
            "sending datagrams one by one, which is slower"
        );
    }
}

/// Whether a batch that this host sends to itself arrives as it was sent; none if loopback is not usable.
fn works_on_loopback(send: SendMessages) -> Option<bool> {
    let addresses: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    addresses.into_iter().find_map(|address| works_at(address, send))
}

fn works_at(address: IpAddr, send: SendMessages) -> Option<bool> {
    const SEGMENT: usize = 500;
    let sender = UdpSocket::bind((address, 0)).ok()?;
    let receiver = UdpSocket::bind((address, 0)).ok()?;
    // Nobody else's datagrams count.
    receiver.connect(sender.local_addr().ok()?).ok()?;
    let _ = setsockopt(&receiver, sockopt::UdpGroSegment, &true);
    // No two segments are alike, and the last one is shorter.
    let bytes: Vec<u8> =
        (0..=u8::MAX).flat_map(|byte| [byte, !byte, byte / 3]).take(SEGMENT + SEGMENT / 2).collect();
    let segment = u16::try_from(SEGMENT).ok();
    match send(sender.as_fd(), &[Message { to: receiver.local_addr().ok()?, bytes: &bytes, segment }]) {
        Ok(_) => {}
        Err(Errno::EIO | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT) => return Some(false),
        Err(_) => return None,
    }
    let expected: Vec<&[u8]> = bytes.chunks(SEGMENT).collect();
    let (mut inbox, mut arrived) = (Inbox::new(), Vec::new());
    let since = Instant::now();
    while arrived.len() < expected.len() && since.elapsed() < LOOPBACK_WAIT {
        if inbox.receive(receiver.as_fd()).is_ok() {
            let (buffer, places) = inbox.datagrams();
            let buffer = &*buffer;
            arrived.extend(places.map(|(span, _)| buffer[span.start..span.start + span.len].to_vec()));
        } else {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // A firewall may close loopback.
    (!arrived.is_empty()).then(|| arrived == expected)
}

#[cfg(test)]
mod tests {
    use super::super::mmsg;
    use super::*;

    const AUTO: OffloadOption = OffloadOption::Auto;

    fn batch(to: SocketAddr, segment: u16) -> Message<'static> {
        Message { to, bytes: &[0; 64], segment: Some(segment) }
    }

    fn addresses() -> (SocketAddr, SocketAddr) {
        (SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), SocketAddr::from((Ipv6Addr::LOCALHOST, 1)))
    }

    #[test]
    fn a_kernel_that_works_passes_the_test_and_one_that_does_not_is_found() {
        assert!(UdpOffload::new("t", AUTO, mmsg::send).is_used());
        // As before Linux 4.18: the option is ignored, and one large datagram leaves.
        let ignores: SendMessages = |socket, messages| {
            mmsg::send(socket, &messages.iter().map(|m| Message { segment: None, ..*m }).collect::<Vec<_>>())
        };
        let refuses: SendMessages = |_, _| Err(Errno::EIO);
        let corrupts: SendMessages = |socket, messages| {
            let mut bytes = messages[0].bytes.to_vec();
            bytes[700] ^= 1;
            mmsg::send(socket, &[Message { bytes: &bytes, ..messages[0] }])
        };
        for send in [ignores, refuses, corrupts] {
            assert!(!UdpOffload::new("t", AUTO, send).is_used());
            assert!(UdpOffload::new("t", OffloadOption::On, send).is_used(), "as the operator says");
        }
        // Where loopback is not usable the first batches decide.
        assert!(UdpOffload::new("t", AUTO, |_, _| Err(Errno::ENETUNREACH)).is_used());
        assert!(!UdpOffload::new("t", OffloadOption::Off, mmsg::send).is_used());
    }

    #[test]
    fn refusals_in_a_row_switch_it_off_for_that_family_and_for_good() {
        let (v4, v6) = addresses();
        let offload = UdpOffload::new("t", AUTO, mmsg::send);
        for _ in 0..10 {
            (1..REFUSALS).for_each(|_| offload.note_refused(&batch(v4, 1_452), Errno::EIO));
            offload.note_accepted(&[batch(v4, 1_452)]);
        }
        assert!(offload.is_on(v4));
        (0..REFUSALS).for_each(|_| offload.note_refused(&batch(v4, 1_452), Errno::EIO));
        assert!(!offload.is_on(v4) && offload.is_on(v6) && offload.is_used());
        offload.note_accepted(&[batch(v4, 1_452)]);
        assert!(!offload.is_on(v4));
        assert_eq!(offload.refused_batches(), u64::from(10 * (REFUSALS - 1) + REFUSALS));
    }

    #[test]
    fn segments_beyond_the_path_mtu_are_no_evidence() {
        let (v4, _) = addresses();
        let offload = UdpOffload::new("t", AUTO, mmsg::send);
        for errno in [Errno::EINVAL, Errno::EMSGSIZE] {
            (0..100).for_each(|_| offload.note_refused(&batch(v4, 1_452), errno));
        }
        assert!(offload.is_on(v4));
        (0..REFUSALS).for_each(|_| offload.note_refused(&batch(v4, 1_000), Errno::EINVAL));
        assert!(!offload.is_on(v4));
    }

    #[test]
    fn where_batches_arrive_damaged_no_more_are_made_and_others_are_not_affected() {
        let (v4, v6) = addresses();
        let other = SocketAddr::from((Ipv4Addr::LOCALHOST, 2));
        let offload = UdpOffload::new("t", AUTO, mmsg::send);
        assert!(offload.switch_off_for(v4));
        assert!(!offload.switch_off_for(v4), "nothing new");
        assert!(!offload.is_on(v4) && offload.is_on(other) && offload.is_on(v6));
        for port in 0..10_000 {
            offload.switch_off_for(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        assert_eq!(offload.damaged_at.load().len(), MOST_DAMAGED);
        assert!(!UdpOffload::new("t", OffloadOption::On, mmsg::send).switch_off_for(v4));
    }

    #[test]
    fn on_stays_on() {
        let (v4, _) = addresses();
        let offload = UdpOffload::new("t", OffloadOption::On, mmsg::send);
        (0..100).for_each(|_| offload.note_refused(&batch(v4, 1_000), Errno::EIO));
        assert!(offload.is_on(v4));
        assert_eq!(offload.refused_batches(), 100);
    }
}
