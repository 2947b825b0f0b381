#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    aulos_fuzz::json(input);
});
