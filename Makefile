# `make run` and `make test` set up what is missing; both work on a fresh Debian with make, curl and rustup's stable Rust.

.PHONY: run test bench soak fuzz

# The gateway with a provider that really speaks and hears, on loopback: prints requests to paste.
run:
	deploy/setup build speech
	cargo build --locked
	exec target/debug/aulos demo

# Everything: format, lints, all tests, real clients among them.
test:
	deploy/setup build speech clients
	tests/clients/install
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo test --locked --package aulos --package aulos-fuzz

# What a fuzzer makes up for the scanners, a minute each.
fuzz:
	deploy/setup build fuzz
	tests/fuzz/run

# Measures, on loopback, for some five minutes: beside a bare Pingora proxy, nginx and HAProxy.
bench:
	deploy/setup build bench
	cargo build --release --locked --workspace --bins
	PATH="$$PATH:/usr/sbin:/sbin" target/release/bench

# The timed and long figures: slow clients, uploads, failing providers, mixed faults, memory. A few minutes, on loopback.
soak:
	deploy/setup build
	cargo build --release --locked --workspace --bins
	target/release/soak
