//! The parts of an answer on which both servers have to agree.

use std::collections::BTreeSet;

use serde_json::{Value, json};

/// What both servers have to agree on in a body: of errors the reason and the text, of Nodes what meshd and the lab use.
pub(crate) fn essence(body: &Value) -> Value {
    match body["kind"].as_str() {
        Some("Status") => json!({
            "status": body["status"], "reason": body["reason"],
            "message": if compared_by_code(body) { Value::Null } else { body["message"].clone() },
            "name": body["details"]["name"],
        }),
        Some("NodeList") => {
            let items = body["items"].as_array().unwrap();
            json!({
                // The real server's cache returns them in no particular order.
                "names": items.iter().map(|item| item["metadata"]["name"].as_str()).collect::<BTreeSet<_>>(),
                "kinds": items.iter().map(|item| item["kind"].clone()).collect::<Vec<_>>(),
                "continues": body["metadata"]["continue"].is_string(),
                "remaining": body["metadata"]["remainingItemCount"],
            })
        }
        Some("Node") => node_essence(body),
        Some("Endpoints") => {
            json!({"name": body["metadata"]["name"], "addresses": body["subsets"][0]["addresses"]})
        }
        Some("Event") => {
            let mut body = body.clone();
            if body["regarding"]["namespace"].is_null() {
                body["regarding"].as_object_mut().map(|about| about.remove("namespace"));
            }
            let fields = [
                "apiVersion",
                "reason",
                "note",
                "message",
                "type",
                "action",
                "regarding",
                "involvedObject",
                "reportingController",
            ];
            fields.iter().map(|field| ((*field).to_owned(), body[*field].clone())).collect()
        }
        None if !body.is_null() => json!("not a kind"),
        Some("EventList") => json!(body["items"].as_array().unwrap().len()),
        _ => Value::Null,
    }
}

/// Errors about malformed input: each server has its own wording, so only code and reason are compared.
fn compared_by_code(status: &Value) -> bool {
    matches!(
        status["reason"].as_str(),
        Some("Invalid" | "BadRequest" | "UnsupportedMediaType" | "Timeout" | "Expired")
    ) || status["message"].as_str().is_some_and(|message| message.contains("UID in record"))
}

pub(crate) fn node_essence(node: &Value) -> Value {
    json!({
        "name": node["metadata"]["name"],
        "labels": node["metadata"]["labels"],
        "annotations": node["metadata"]["annotations"],
        "uid": node["metadata"]["uid"].is_string(),
        "created": node["metadata"]["creationTimestamp"].as_str().map(str::len),
        "generation": node["metadata"]["generation"],
        "podCIDR": node["spec"]["podCIDR"],
        "podCIDRs": node["spec"]["podCIDRs"],
        "unschedulable": node["spec"]["unschedulable"],
        "addresses": node["status"]["addresses"],
    })
}

pub(crate) fn event_essence(event: &Value) -> Value {
    let object = match event["type"].as_str() {
        Some("BOOKMARK") => {
            json!({"kind": event["object"]["kind"], "name": event["object"]["metadata"]["name"]})
        }
        Some("ERROR") => json!({"code": event["object"]["code"], "reason": event["object"]["reason"]}),
        _ => node_essence(&event["object"]),
    };
    json!({"type": event["type"], "object": object})
}
