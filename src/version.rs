//! Which program this is.

/// The release.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// The first digits of the commit it was built of; `unknown` where neither git nor `COUNTERSIGN_COMMIT` told.
pub const COMMIT: &str = env!("COUNTERSIGN_COMMIT");

/// Both, as `--version` prints them behind the name.
pub(crate) const SHOWN: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("COUNTERSIGN_COMMIT"), ")");
