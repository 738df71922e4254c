//! The key file.
