//! What a command of a row sent, read from its words and from what it printed. Pure.

use crate::cases::Expected;
use crate::report::Traffic;

/// Requests and packets of a command, if it is one that says so; nothing for others, and where no answer is what is expected:
/// then nothing is lost.
pub fn of(command: &[&str], expected: &Expected, succeeded: bool, printed: &str) -> Option<Traffic> {
    match command {
        _ if *expected == Expected::Failure => None,
        ["e2e-pod", "ask", ..] => Some(Traffic { sent: 1, lost: u64::from(!succeeded) }),
        // It ends at the first that is not answered.
        ["e2e-pod", "spread", times, ..] if succeeded => Some(Traffic { sent: times.parse().ok()?, lost: 0 }),
        ["ping", ..] => pinged(printed),
        ["e2e-pod", "stream", ..] => streamed(printed),
        _ => None,
    }
}

/// Reads the line "3 packets transmitted, 2 packets received, 33% packet loss" of ping.
fn pinged(printed: &str) -> Option<Traffic> {
    let line = printed.lines().find(|line| line.contains(" packets transmitted, "))?;
    let (sent, rest) = line.split_once(" packets transmitted, ")?;
    let received: u64 = rest.split_whitespace().next()?.parse().ok()?;
    let sent: u64 = sent.trim().parse().ok()?;
    Some(Traffic { sent, lost: sent.saturating_sub(received) })
}

/// Reads "9000 sent, 12 lost, ...", which a stream prints that lost no more than it may.
fn streamed(printed: &str) -> Option<Traffic> {
    let (sent, rest) = printed.trim().split_once(" sent, ")?;
    let (lost, _pause) = rest.split_once(" lost, ")?;
    Some(Traffic { sent: sent.parse().ok()?, lost: lost.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_and_lost_is_known_of_those_that_say_so() {
        let answered = |command: &[&str], succeeded, printed: &str| {
            of(command, &Expected::Contains(String::new()), succeeded, printed)
        };
        let traffic = |sent, lost| Some(Traffic { sent, lost });
        assert_eq!(answered(&["e2e-pod", "ask", "tcp", "10.0.0.1:80"], true, "a 10.0.0.2"), traffic(1, 0));
        assert_eq!(answered(&["e2e-pod", "ask", "tcp", "10.0.0.1:80"], false, ""), traffic(1, 1));
        assert_eq!(answered(&["e2e-pod", "spread", "60", "10.0.0.1:80"], true, "a b"), traffic(60, 0));
        assert_eq!(answered(&["e2e-pod", "spread", "60", "10.0.0.1:80"], false, ""), None);
        let busybox = "x\n3 packets transmitted, 2 packets received, 33% packet loss\n";
        assert_eq!(answered(&["ping", "-c", "3"], false, busybox), traffic(3, 1));
        let iputils = "3 packets transmitted, 3 received, 0% packet loss, time 2ms";
        assert_eq!(answered(&["ping", "-c", "3"], true, iputils), traffic(3, 0));
        assert_eq!(answered(&["ping", "-c", "3"], false, ""), None);
        let stream = "9000 sent, 12 lost, 130 ms without an answer at most\n";
        let stream = answered(&["e2e-pod", "stream", "90", "20", "10.0.0.1:80"], true, stream);
        assert_eq!(stream, traffic(9000, 12));
        assert_eq!(answered(&["ip", "addr"], true, "x"), None);
        let ask = ["e2e-pod", "ask", "tcp", "10.0.0.1:80"];
        assert_eq!(of(&ask, &Expected::Failure, false, ""), None);
    }
}
