//! `ncn`: the network's one program.

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    // Models run in worker processes of this same program.
    ncn_node::worker::init();
    cli::run(cli::Arguments::parse())
}
