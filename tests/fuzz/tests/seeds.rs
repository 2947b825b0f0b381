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

#[test]
fn every_law_holds_for_its_seeds() {
    for (name, law) in aulos_fuzz::LAWS {
        for (seed, bytes) in files(&format!("seeds/{name}")) {
            println!("{name}: {seed}");
            law(&bytes);
            let Some((_, rest)) = bytes.split_first() else { continue };
            for size in 0..=u8::MAX {
                law(&[&[size], rest].concat());
            }
        }
    }
}

#[test]
fn the_law_of_heads_holds_for_what_clients_sent() {
    for (capture, bytes) in files("../data/captures") {
        println!("{capture}");
        for size in [0, 1, 7, 255] {
            aulos_fuzz::head(&[&[size], &bytes[..bytes.len().min(8192)]].concat());
        }
    }
}
