//! `countersign man`: the manual pages.

use std::{fs, io, path::Path};

use clap::CommandFactory as _;
use clap_mangen::Man;

use super::{Cli, FINE, UNAVAILABLE, say, say_error};

/// Prints the page of the program, or writes it and one for each command into `folder`, which is made if it is not there.
pub(super) fn run(folder: Option<&Path>) -> u8 {
    let made = match folder {
        None => page().map(|page| say(&page)),
        Some(folder) => fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Cli::command(), folder)),
    };
    match made {
        Ok(()) => FINE,
        Err(error) => {
            say_error(&format!(
                "error: the manual pages cannot be written: {error}; choose another folder with --dir\n"
            ));
            UNAVAILABLE
        }
    }
}

fn page() -> io::Result<String> {
    let mut page = Vec::new();
    Man::new(Cli::command().disable_help_subcommand(true)).render(&mut page)?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}
