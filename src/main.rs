//! Arguments → a verb. Everything else is in the library.

use std::process::ExitCode;

mod allocator;

fn main() -> ExitCode {
    aulos::cli::main()
}
