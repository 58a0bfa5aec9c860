//! `countersign manifest`: what a UI extension's manifest must allow.

use std::path::PathBuf;

use super::{FINE, NEGATIVE, loaded, say, say_error};

/// Prints a `connect-src` member for stripe-app.json: an entry for each name of the listener and each route, for an
/// entry needs a path after the host.
pub(super) fn run(config: Option<PathBuf>) -> u8 {
    let config = match loaded(config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    if config.listener.names.is_empty() {
        say_error(
            "error: the listener has no `names`, so the gateway's public host is not known; add it to [listener]\n",
        );
        return NEGATIVE;
    }
    let port = match config.listener.address.port() {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let mut sources = Vec::new();
    for name in &config.listener.names {
        for route in config.routes.iter() {
            sources.push(format!("https://{name}{port}{}", route.pattern.as_str()));
        }
    }
    let manifest = serde_json::json!({ "ui_extension": { "content_security_policy": { "connect-src": sources } } });
    say(&format!("{manifest:#}\n"));
    FINE
}
