//! Requests to one server, each with its result.

use futures::{AsyncBufReadExt, TryStreamExt};
use kube::Client;
use kube::client::Body;
use lab::ApiServer;
use serde_json::{Value, json};

use super::essence::essence;

/// One server, and the result of each step so far.
pub(crate) struct Walk<'a> {
    pub(crate) api: &'a ApiServer,
    pub(crate) trail: Vec<(String, Value)>,
}

/// A request: method, path with query, media type, body.
pub(crate) type Ask<'a> = (&'a str, &'a str, &'a str, Value);

impl Walk<'_> {
    /// Makes a request as a user and records the code, the reason, and those parts of the body that have to agree.
    /// Returns the whole body.
    pub(crate) fn step(&mut self, user: &str, (method, path, media, body): Ask<'_>) -> Value {
        let body = match body {
            Value::Null => String::new(),
            Value::String(raw) => raw,
            other => other.to_string(),
        };
        let shown: String = body.chars().take(80).collect();
        let config = match user {
            "nobody" => self.api.kubeconfig_with("nobody", ""),
            "stranger" => self.api.kubeconfig_with("stranger", "no-such-token"),
            known => self.api.kubeconfig(known).unwrap(),
        };
        let request = http_request(method, path, media, body);
        let (code, answer) = self
            .api
            .run_with(&config, user, |client| async move {
                let response = client.send(request).await.unwrap();
                let code = response.status().as_u16();
                let bytes = response.into_body().collect_bytes().await.unwrap();
                (code, serde_json::from_slice::<Value>(&bytes).unwrap_or(Value::Null))
            })
            .unwrap();
        self.note(
            &format!("{user}: {method} {path} {shown}"),
            json!({"code": code, "body": essence(&answer)}),
        );
        answer
    }

    pub(crate) fn note(&mut self, what: &str, outcome: Value) {
        self.trail.push((what.to_owned(), outcome));
    }

    pub(crate) fn revision(&self) -> String {
        let list =
            self.api.run("admin", |client| async move { get(&client, "/api/v1/nodes").await }).unwrap();
        list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    }

    /// Watches with a query until the server ends it; returns the events.
    pub(crate) fn watch(&self, user: &str, query: &str) -> Vec<Value> {
        let path = format!("/api/v1/nodes?watch=true&{query}");
        self.api.run(user, |client| async move { collect(&client, &path).await }).unwrap()
    }
}

pub(crate) fn http_request(method: &str, path: &str, media: &str, body: String) -> axum::http::Request<Body> {
    let request = axum::http::Request::builder().method(method).uri(path).header("content-type", media);
    request.body(Body::from(body.into_bytes())).unwrap()
}

pub(crate) async fn get(client: &Client, path: &str) -> Value {
    let text = client.request_text(axum::http::Request::get(path).body(Vec::new()).unwrap()).await.unwrap();
    serde_json::from_str(&text).unwrap()
}

pub(crate) async fn collect(client: &Client, path: &str) -> Vec<Value> {
    let request = axum::http::Request::get(path).body(Vec::new()).unwrap();
    let lines = client.request_stream(request).await.unwrap().lines();
    let lines: Vec<String> = lines.try_collect().await.unwrap();
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}
