//! Exports lines in formats for other tools.

use serde_json::{Value, json};

use super::event::Event;
use super::line::Line;

/// An export format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line, as in the trail, but not in the order that the hash is computed over.
    Jsonl,
    /// Comma-separated values (RFC 4180) with a header.
    Csv,
    /// Open Cybersecurity Schema Framework 1.3, class Entity Management (3004): the entity is a key.
    Ocsf,
}

/// Renders lines in a format.
pub fn export(lines: &[&Line], format: Format) -> String {
    let mut text = String::new();
    if format == Format::Csv {
        text += "seq,time,node,uid,event,detail,hash\r\n";
    }
    for line in lines {
        match format {
            Format::Jsonl => text += &(object(line).to_string() + "\n"),
            Format::Csv => text += &csv(line),
            Format::Ocsf => text += &(ocsf(line).to_string() + "\n"),
        }
    }
    text
}

/// A line as a JSON object.
fn object(line: &Line) -> Value {
    let mut object = serde_json::to_value(&line.event).unwrap_or_default();
    if let Some(members) = object.as_object_mut() {
        members.insert("seq".to_owned(), json!(line.seq));
        members.insert("time".to_owned(), json!(line.time));
        members.insert("boot".to_owned(), json!(line.boot));
        members.insert("node".to_owned(), json!(line.node));
        members.insert("hash".to_owned(), json!(line.hash));
    }
    object
}

/// The event's name and its other members.
fn parts(event: &Event) -> (String, Value) {
    let mut value = serde_json::to_value(event).unwrap_or_default();
    let name = value.as_object_mut().and_then(|members| members.remove("event"));
    (name.and_then(|name| name.as_str().map(ToOwned::to_owned)).unwrap_or_default(), value)
}

fn csv(line: &Line) -> String {
    let (event, detail) = parts(&line.event);
    let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let (name, uid) = (quote(&line.node.name), quote(line.node.uid.as_str()));
    format!(
        "{},{},{name},{uid},{event},{},{}\r\n",
        line.seq,
        line.time,
        quote(&detail.to_string()),
        line.hash
    )
}

/// `activity_id`: 1 create, 3 update, 4 delete, 99 other; `type_uid` is the class times 100 plus that; severity 1 is
/// informational, 3 medium.
fn ocsf(line: &Line) -> Value {
    let (event, detail) = parts(&line.event);
    let activity = match line.event {
        Event::Staged { .. } => 1,
        Event::Published { .. } | Event::Active { .. } => 3,
        Event::Destroyed { .. } => 4,
        _ => 99,
    };
    let severity = match line.event {
        Event::Blocked { .. }
        | Event::RolledBack { .. }
        | Event::Forced { .. }
        | Event::PeerRefused { .. }
        | Event::Repaired { .. }
        | Event::Damaged { .. }
        | Event::Omitted { .. }
        | Event::Lost { .. } => 3,
        _ => 1,
    };
    json!({
        "class_uid": 3004,
        "class_name": "Entity Management",
        "category_uid": 3,
        "activity_id": activity,
        "type_uid": 3004 * 100 + activity,
        "severity_id": severity,
        "time": line.time,
        "message": event,
        "metadata": {
            "version": "1.3.0",
            "uid": line.hash,
            "sequence": line.seq,
            "product": {"name": "meshd", "vendor_name": "meshd"},
        },
        "actor": {"process": {"name": "meshd"}},
        "device": {"hostname": line.node.name, "uid": line.node.uid.as_str(), "type_id": 1},
        "entity": {"type": "WireGuard key", "name": detail["key"], "data": detail},
    })
}
