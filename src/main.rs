//! Arguments → a verb. Everything else is in the library.

use std::process::ExitCode;

/// As fast as the best for this load, at a third of the memory an open stream costs with others.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    aulos::cli::main()
}
