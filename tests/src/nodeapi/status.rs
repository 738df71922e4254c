//! The error bodies of the Kubernetes API, with the codes, reasons and texts of the real server.

use serde_json::{Value, json};

/// A refusal: HTTP code and `Status` object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Status {
    code: u16,
    reason: &'static str,
    message: String,
    details: Value,
}

impl Status {
    /// HTTP status code.
    pub(crate) fn code(&self) -> u16 {
        self.code
    }

    /// The `Status` object.
    pub(crate) fn body(&self) -> Value {
        let mut body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            body["reason"] = json!(self.reason);
        }
        if !self.details.is_null() {
            body["details"] = self.details.clone();
        }
        body
    }

    /// An in-stream error event of a watch.
    pub(crate) fn event(&self) -> Value {
        json!({"type": "ERROR", "object": self.body()})
    }

    fn new(code: u16, reason: &'static str, message: impl Into<String>, details: Value) -> Self {
        Self { code, reason, message: message.into(), details }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message, Value::Null)
    }

    /// What the real server did not expect; it gives no reason then.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message, Value::Null)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized", Value::Null)
    }

    /// `what` names the resource and, if there is one, the object: `nodes` or `nodes "n1"`.
    pub(crate) fn forbidden(resource: &str, name: Option<&str>, cause: &str) -> Self {
        let what = name.map_or_else(|| resource.to_owned(), |name| format!("{resource} \"{name}\""));
        let details = about(name.unwrap_or_default(), resource);
        Self::new(403, "Forbidden", format!("{what} is forbidden: {cause}"), details)
    }

    pub(crate) fn not_found(resource: &str, name: &str) -> Self {
        let details = about(name, resource);
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found"), details)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource", json!({}))
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message, json!({}))
    }

    pub(crate) fn already_exists(resource: &str, name: &str) -> Self {
        let details = about(name, resource);
        Self::new(409, "AlreadyExists", format!("{resource} \"{name}\" already exists"), details)
    }

    pub(crate) fn conflict(resource: &str, name: &str, cause: &str) -> Self {
        let details = about(name, resource);
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {cause}");
        Self::new(409, "Conflict", message, details)
    }

    /// What the server forgot: an old resource version, or a page of a list.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message, Value::Null)
    }

    /// A body that can't be decoded into an object.
    pub(crate) fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message, json!({}))
    }

    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message, json!({}))
    }

    /// An object that breaks the rules of its kind.
    pub(crate) fn invalid(kind: &str, name: &str, field: &str, cause: &str) -> Self {
        let mut details = about(name, kind);
        details["causes"] = json!([{"reason": "FieldValueInvalid", "message": cause, "field": field}]);
        Self::new(422, "Invalid", format!("{kind} \"{name}\" is invalid: {field}: {cause}"), details)
    }

    /// A resource version that this server has not reached.
    pub(crate) fn too_large_version(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let causes = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        let details = json!({"retryAfterSeconds": 1, "causes": causes});
        Self::new(504, "Timeout", format!("Timeout: {message}"), details)
    }
}

/// What a refusal is about; a name that is not there is left out.
fn about(name: &str, kind: &str) -> Value {
    if name.is_empty() { json!({"kind": kind}) } else { json!({"name": name, "kind": kind}) }
}
