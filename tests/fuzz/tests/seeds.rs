//! Every law holds for its seeds, and for what a real client sent, in pieces of every size.

use std::fs;
use std::path::Path;

fn files(dir: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        entry.path().is_file().then(|| (name, fs::read(entry.path()).expect("readable")))
    };
    let found: Vec<_> = fs::read_dir(&dir).expect("a folder").filter_map(|entry| read(entry.expect("there"))).collect();
    assert!(!found.is_empty(), "nothing in {}", dir.display());
    found
}

/// The seeds that a scanner refuses.
const REFUSED: [&str; 4] = ["smuggled", "twice", "marked", "dots"];

#[test]
fn every_law_holds_for_its_seeds() {
    for (name, law) in aulos_fuzz::LAWS {
        for (seed, bytes) in files(&format!("seeds/{name}")) {
            let passes = !REFUSED.contains(&seed.as_str());
            assert_eq!(law(&bytes), passes, "{name}: {seed}");
            // Paths come whole.
            let Some((_, rest)) = bytes.split_first().filter(|_| name != "path") else { continue };
            for size in 1..=u8::MAX {
                assert_eq!(law(&[&[size], rest].concat()), passes, "{name}: {seed} in pieces of {size}");
            }
        }
    }
}

#[test]
fn the_law_of_heads_holds_for_what_clients_sent() {
    let is_one = |(name, _): &(String, Vec<u8>)| name.ends_with(".http");
    for (capture, bytes) in files("../data/captures").into_iter().filter(is_one) {
        for size in [1, 7, 255] {
            let passes = aulos_fuzz::head(&[&[size], &bytes[..bytes.len().min(8192)]].concat());
            assert!(passes, "{capture} in pieces of {size}");
        }
    }
}
