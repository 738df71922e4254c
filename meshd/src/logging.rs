//! Log output: format, filter and destination.

use std::io::stderr;

use tracing_subscriber::EnvFilter;

use crate::config::Config;

/// Starts logging as configured. A second call has no effect.
pub(crate) fn start(config: &Config) {
    // The filter was parsed when the configuration was read.
    let filter = EnvFilter::try_new(&config.log_filter).unwrap_or_default();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // Fails only if a test has already started logging.
    let _ = if config.log_json {
        lines.json().flatten_event(true).try_init()
    } else {
        lines.with_ansi(false).try_init()
    };
}

/// Starts logging as plain text at level info, for commands without a configuration.
pub(crate) fn plain() {
    let filter = EnvFilter::try_from_env("MESHD_LOG_LEVEL").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(stderr).try_init();
}
