//! VERSION: the supported versions of the specification.

use serde_json::json;

use crate::conf::Conf;
use crate::version::SpecVersion;

pub(super) fn run(conf: &Conf) -> String {
    let supported = SpecVersion::ALL.map(SpecVersion::as_str);
    let document = json!({"cniVersion": conf.version.as_str(), "supportedVersions": supported});
    format!("{document:#}\n")
}
