//! Echoes inside the tunnel that somebody asked for: `meshd ping` and `kubectl meshd ping`. Pure.

use std::fmt::Write as _;
use std::net::SocketAddr;

use keyring::Slot;
use serde::{Deserialize, Serialize};

use crate::mesh::{API_VERSION, Verdict};
use crate::table::round_trip_text;

/// The smallest and the largest packet in bytes that may be asked for: a probe with the headers of IPv6 and UDP, and what the control
/// channel sends at most.
pub const SIZES: std::ops::RangeInclusive<u32> = 100..=9028;

/// What became of one echo.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Echo {
    /// The slot that it took; none if it was not sent.
    pub slot: Option<Slot>,
    /// Time until it came back, in microseconds; none if it did not.
    pub round_trip_microseconds: Option<u64>,
    /// Where datagrams to the peer go.
    pub endpoint: Option<SocketAddr>,
    /// What kind of endpoint that is, and the relay as in `relayed via n1`; none while it is searched for.
    pub path: Option<String>,
    /// Why it was not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Echo {
    /// One that was not sent.
    pub fn refused(why: &str) -> Self {
        Self { refused: Some(why.to_owned()), ..Self::default() }
    }

    /// Whether it came back, and its datagrams went over no relay.
    pub fn is_direct(&self) -> bool {
        let direct = self.path.as_ref().is_some_and(|path| !path.starts_with("relayed"));
        direct && self.round_trip_microseconds.is_some()
    }
}

/// Echoes from one node to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshPing {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `MeshPing`.
    pub kind: String,
    /// The node that asks.
    pub from: String,
    /// The node that echoes.
    pub to: String,
    /// Size of the packets in bytes; none for the smallest.
    pub size: Option<u32>,
    /// Each echo.
    pub echoes: Vec<Echo>,
}

impl MeshPing {
    /// Without any echo yet.
    pub fn new(from: &str, to: &str, size: Option<u32>) -> Self {
        let (from, to) = (from.to_owned(), to.to_owned());
        Self {
            api_version: API_VERSION.to_owned(),
            kind: "MeshPing".to_owned(),
            from,
            to,
            size,
            echoes: Vec::new(),
        }
    }

    /// The last echo in one line.
    pub fn line(&self) -> String {
        let Some(echo) = self.echoes.last() else { return String::new() };
        let Some(slot) = echo.slot else {
            return format!("{}: {}", self.to, echo.refused.as_deref().unwrap_or("not sent"));
        };
        let path = echo.path.as_deref().unwrap_or("path not found yet");
        let endpoint = echo.endpoint.map(|endpoint| format!(", {endpoint}")).unwrap_or_default();
        let took = echo.round_trip_microseconds.map_or_else(|| "no answer".to_owned(), round_trip_text);
        format!("{} slot {slot}: {took}, {path}{endpoint}", self.to)
    }

    /// All of them in one line.
    pub fn summary(&self) -> String {
        let mut took: Vec<u64> = self.echoes.iter().filter_map(|echo| echo.round_trip_microseconds).collect();
        took.sort_unstable();
        let mut text = format!("{} of {} answered", took.len(), self.echoes.len());
        if let (Some(least), Some(middle), Some(most)) = (took.first(), took.get(took.len() / 2), took.last())
        {
            let [least, middle, most] = [least, middle, most].map(|took| round_trip_text(*took));
            // Writing into a String can't fail.
            let _ = write!(text, "; {least} least, {middle} median, {most} most");
        }
        text
    }

    /// Failed if none came back, or with `until_direct` if the last one took no direct path; unknown if none could be sent.
    pub fn verdict(&self, until_direct: bool) -> Verdict {
        if self.echoes.iter().all(|echo| echo.slot.is_none()) {
            return Verdict::Unknown;
        }
        let good = if until_direct {
            self.echoes.last().is_some_and(Echo::is_direct)
        } else {
            self.echoes.iter().any(|echo| echo.round_trip_microseconds.is_some())
        };
        if good { Verdict::Good } else { Verdict::Failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn echo(took: Option<u64>, path: &str) -> Echo {
        Echo {
            slot: Some(Slot::A),
            round_trip_microseconds: took,
            endpoint: Some("192.0.2.7:51840".parse().unwrap()),
            path: Some(path.to_owned()),
            refused: None,
        }
    }

    fn ping(echoes: &[Echo]) -> MeshPing {
        MeshPing { echoes: echoes.to_vec(), ..MeshPing::new("n1", "n2", None) }
    }

    #[test]
    fn a_line_says_how_long_over_what_and_the_end_how_many() {
        let relayed = ping(&[echo(Some(21_640), "relayed via n3")]);
        assert_eq!(relayed.line(), "n2 slot a: 21.6 ms, relayed via n3, 192.0.2.7:51840");
        let lost = ping(&[echo(Some(900), "direct"), echo(Some(30_000), "direct"), echo(None, "direct")]);
        assert_eq!(lost.line(), "n2 slot a: no answer, direct, 192.0.2.7:51840");
        assert_eq!(lost.summary(), "2 of 3 answered; 0.9 ms least, 30.0 ms median, 30.0 ms most");
        assert_eq!(ping(&[echo(None, "direct")]).summary(), "0 of 1 answered");
        assert_eq!(ping(&[Echo::refused("no such peer")]).line(), "n2: no such peer");
    }

    #[test]
    fn an_echo_is_enough_unless_a_direct_path_is_wanted() {
        let (direct, relayed, lost) =
            (echo(Some(1), "public address"), echo(Some(1), "relayed via n3"), echo(None, "direct"));
        for (echoes, usual, until_direct) in [
            (&[lost.clone(), direct.clone()][..], Verdict::Good, Verdict::Good),
            (&[direct.clone(), relayed.clone()], Verdict::Good, Verdict::Failed),
            (&[relayed, direct], Verdict::Good, Verdict::Good),
            (&[lost], Verdict::Failed, Verdict::Failed),
            (&[Echo::refused("no such peer")], Verdict::Unknown, Verdict::Unknown),
            (&[], Verdict::Unknown, Verdict::Unknown),
        ] {
            let ping = ping(echoes);
            assert_eq!((ping.verdict(false), ping.verdict(true)), (usual, until_direct), "{echoes:?}");
        }
    }
}
