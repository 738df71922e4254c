//! Engines that talk through memory, with an eavesdropper in between.

mod hostile;
mod net;
mod peers;
mod sessions;
