//! TODO
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Failure;
/// x
#[derive(Debug)]
pub struct Health;
/// x
#[derive(Debug)]
pub struct Interface;
/// x
#[derive(Debug)]
pub struct InterfaceConfig;
