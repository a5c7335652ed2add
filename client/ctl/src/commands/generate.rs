//! `completions`, `man`: made from the command line's own description.

use clap_complete::Shell;

use crate::cli;
use crate::error::CtlError;
use crate::show;

pub(super) fn completions(shell: Shell) -> Result<(), CtlError> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "lmcache-ctl", &mut text);
    show::print(&String::from_utf8_lossy(&text));
    Ok(())
}

/// One page with all subcommands: the manual of each, behind that of the program.
pub(super) fn man() -> Result<(), CtlError> {
    let mut text = Vec::new();
    let mut command = cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        let title = format!("lmcache-ctl {}", sub.get_name());
        text.extend_from_slice(format!(".SH \"{}\"\n", title.to_uppercase()).as_bytes());
        let man = clap_mangen::Man::new(sub.clone());
        let mut part = Vec::new();
        man.render_description_section(&mut part)?;
        man.render_synopsis_section(&mut part)?;
        man.render_options_section(&mut part)?;
        // Sections of a section.
        text.extend_from_slice(String::from_utf8_lossy(&part).replace(".SH ", ".SS ").as_bytes());
    }
    show::print(&String::from_utf8_lossy(&text));
    Ok(())
}
