//! What the service manager that started this process is told: systemd's protocol of notifications.
//!
//! Without such a manager (`NOTIFY_SOCKET`) nothing is said to anybody.
//!
//! Source: systemd, `sd_notify(3)`, <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>.

use std::{net::SocketAddr, time::Duration};

use sd_notify::NotifyState;

use crate::server::{Pulse, Stop};

/// Says that requests are served at `address`.
pub fn ready(address: SocketAddr) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serving on {address}"))]);
}

/// Says that the configuration is being read again. [`reloaded`] must follow, whatever comes of it.
pub fn reloading() {
    let mut said = vec![NotifyState::Reloading, NotifyState::Status("reading the configuration")];
    said.extend(NotifyState::monotonic_usec_now());
    tell(&said);
}

/// Says that the reload is over, and how it went: what `status` tells in a line.
pub fn reloaded(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Says that nothing more is accepted, or will not be soon, and what runs is finished.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Tells the manager that the gateway lives, as often as it wants to hear it, for ever: whenever the runtime that this runs on and
/// all workers have turned once. While it drains workers end one after the other, and those that are gone do not count.
pub async fn keep_watch(pulse: Pulse, stop: Stop) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut due = tokio::time::interval((patience / 2).max(Duration::from_millis(1)));
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        if pulse.beat().await || stop.is_draining() {
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(said: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(said) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
