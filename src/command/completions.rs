//! `countersign completions`: what a shell completes.

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, FINE, say};

/// Prints the script that teaches `shell` this command line.
pub(super) fn run(shell: Shell) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "countersign", &mut script);
    say(&String::from_utf8_lossy(&script));
    FINE
}
