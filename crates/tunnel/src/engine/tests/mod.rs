//! Engines that talk through memory, with an eavesdropper in between.

mod hostile;
mod initiator;
mod net;
mod peers;
mod sessions;
