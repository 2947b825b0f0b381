//! The allocator and its settings: jemalloc, as fast as the best for this load, at a third of the memory that an open
//! stream costs with others.
#![expect(unsafe_code, reason = "jemalloc finds its settings by the name of a symbol, and nothing checks that name")]

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What was freed goes back to the system within a second, as long as anything is allocated. In the ten of the default a
/// wave of clients would come to stand beside what the one before it has left. (Options: jemalloc's manual, "tuning".)
#[used]
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &[u8; 20] = b"dirty_decay_ms:1000\0";
