//! The Kubernetes side: Nodes in, own annotations out, and what the API server lets this daemon do.

pub mod connect;
pub mod events;
pub mod fence;
pub mod nodes;
mod observed_node;
pub mod publish;
pub mod servers;

use std::time::Duration;

use tokio::time::timeout;

/// Field manager of patches and component of Events.
pub const FIELD_MANAGER: &str = "meshd";

/// How long the API server may take to answer one question.
pub const API_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the API server may take to store something: as long as an admission webhook may by default.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the API server did not store something, or did not say so.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// It refused, or could not be reached.
    #[error("{operation}")]
    Failed {
        /// What was asked of it.
        operation: &'static str,
        /// The cause; boxed because it is large.
        source: Box<kube::Error>,
    },
    /// It did not answer.
    #[error("{operation}: expected an answer of the API server within {} s", limit.as_secs())]
    Timeout {
        /// What was asked of it.
        operation: &'static str,
        /// How long it was awaited.
        limit: Duration,
    },
}

/// Awaits the answer to a write for at most `limit`.
pub(crate) async fn written<T>(
    operation: &'static str,
    limit: Duration,
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, WriteError> {
    match timeout(limit, write).await {
        Ok(answer) => answer.map_err(|source| WriteError::Failed { operation, source: Box::new(source) }),
        Err(_) => Err(WriteError::Timeout { operation, limit }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_write_that_hangs_fails_and_names_itself() {
        let hanging = std::future::pending::<Result<(), kube::Error>>();
        let error = written("patch", Duration::from_millis(1), hanging).await.unwrap_err();
        assert_eq!(error.to_string(), "patch: expected an answer of the API server within 0 s");
        assert!(written("patch", WRITE_TIMEOUT, async { Ok(()) }).await.is_ok());
    }
}
