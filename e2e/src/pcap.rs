//! Packets in the clear as pcap files, one for each node's uplink, as tcpdump and Wireshark read them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, PcapError, TsResolution};

use crate::capture::Found;
use crate::report::CaptureFile;

/// The files can't be written.
#[derive(Debug, thiserror::Error)]
pub enum PcapFileError {
    /// The capture said something else than a frame.
    #[error("read a frame of the capture on the uplink of {host}")]
    Frame {
        /// The host.
        host: String,
        /// What is wrong with it.
        #[source]
        source: base64::DecodeError,
    },
    /// A frame does not fit the format.
    #[error("write the frames of {host} as a pcap file")]
    Format {
        /// The host.
        host: String,
        /// Why not.
        #[source]
        source: PcapError,
    },
    /// The directory of the report does not have them.
    #[error("write {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Writes them beside a report, in place of those of a former run: `report-n1.pcap` beside `report.json`.
pub fn write(found: &[Found], report: &Path) -> Result<Vec<CaptureFile>, PcapFileError> {
    let directory = report.parent().unwrap_or_else(|| Path::new(""));
    let stem = report.file_stem().unwrap_or_default().to_string_lossy();
    remove_former(directory, &format!("{stem}-"))?;
    let mut hosts: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
    for one in found {
        hosts.entry(&one.host).or_default().push(one);
    }
    let mut files = Vec::new();
    for (host, of_host) in hosts {
        // The name of a host is foreign, and goes into a path and a link.
        let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
        let name = format!("{stem}-{}.pcap", host.replace(|letter| !plain(letter), "_"));
        let path = directory.join(&name);
        let packets = of_host.len();
        let content = encode(host, &of_host)?;
        std::fs::write(&path, content).map_err(|source| PcapFileError::Write { path, source })?;
        files.push(CaptureFile { host: host.to_owned(), name, packets });
    }
    Ok(files)
}

fn remove_former(directory: &Path, start: &str) -> Result<(), PcapFileError> {
    let failed = |path: &Path, source| PcapFileError::Write { path: path.into(), source };
    // A file without a directory is in the current one.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    for entry in std::fs::read_dir(directory).map_err(|source| failed(directory, source))? {
        let path = entry.map_err(|source| failed(directory, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(start) && name.ends_with(".pcap") {
            std::fs::remove_file(&path).map_err(|source| failed(&path, source))?;
        }
    }
    Ok(())
}

/// The frames of one uplink, with nanoseconds.
fn encode(host: &str, found: &[&Found]) -> Result<Vec<u8>, PcapFileError> {
    let failed = |source| PcapFileError::Format { host: host.to_owned(), source };
    let header = PcapHeader {
        datalink: DataLink::ETHERNET,
        ts_resolution: TsResolution::NanoSecond,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(Vec::new(), header).map_err(failed)?;
    for one in found {
        let frame = BASE64_STANDARD
            .decode(&one.frame)
            .map_err(|source| PcapFileError::Frame { host: host.to_owned(), source })?;
        // How long it was before the capture cut it off, IP says in its own header.
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket::new_owned(Duration::from_nanos(one.at), length, frame);
        writer.write_packet(&packet).map_err(failed)?;
    }
    Ok(writer.into_writer())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use pcap_file::pcap::PcapReader;

    use super::*;

    fn found(host: &str, at: u64, frame: &[u8]) -> Found {
        let frame = BASE64_STANDARD.encode(frame);
        Found { at, host: host.into(), what: String::new(), frame }
    }

    #[test]
    fn each_uplink_has_a_file_that_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("report.json");
        for former in ["report-n9.pcap", "other-n9.pcap"] {
            std::fs::write(directory.path().join(former), "").unwrap();
        }
        let at = 1_795_799_482_000_000_001;
        let all = [found("n1", at, b"first"), found("../n2\"", at, b"other"), found("n1", at + 7, b"second")];
        let files = write(&all, &report).unwrap();
        let names: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.packets)).collect();
        assert_eq!(names, [("report-___n2_.pcap", 1), ("report-n1.pcap", 2)]);
        assert!(!directory.path().join("report-n9.pcap").exists());
        assert!(directory.path().join("other-n9.pcap").exists());

        let mut reader =
            PcapReader::new(File::open(directory.path().join("report-n1.pcap")).unwrap()).unwrap();
        assert_eq!(reader.header().datalink, DataLink::ETHERNET);
        let mut read = Vec::new();
        while let Some(packet) = reader.next_packet() {
            let packet = packet.unwrap();
            read.push((packet.timestamp, packet.data.into_owned()));
        }
        let time = Duration::from_nanos;
        assert_eq!(read, [(time(at), b"first".to_vec()), (time(at + 7), b"second".to_vec())]);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let wrong = Found { frame: "?".into(), ..found("n1", 0, b"") };
        let error = write(&[wrong], &directory.path().join("report.json")).unwrap_err();
        assert!(error.to_string().contains("uplink of n1"), "{error}");
    }
}
