//! What opens an upstream.

use crate::{inbox::Due, policy::Permit, webhook::Authentic};

/// Proof that a request may go to an upstream: that a policy permits it, or that it brings an event that Stripe signed. Each
/// is made by the module that grants it and by nobody else, and there are no others.
///
/// ```compile_fail,E0277
/// struct Forged;
/// impl countersign::upstream::Proof for Forged {}
/// ```
pub trait Proof: sealed::Sealed {}

impl Proof for Permit<'_> {}
/// An event that goes on at once.
impl Proof for Authentic {}
/// An event that was kept when it was authentic, and is due now.
impl Proof for Due {}

/// Nobody outside this file can name it.
mod sealed {
    pub trait Sealed {}

    impl Sealed for super::Permit<'_> {}
    impl Sealed for super::Authentic {}
    impl Sealed for super::Due {}
}
