//! Engines that talk through memory, with an eavesdropper in between.

mod bounds;
mod hostile;
mod initiator;
mod net;
mod peers;
mod replays;
mod sessions;
