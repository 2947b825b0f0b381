//! Bodies in chunks that parsers disagree about.

/// Spoilt chunks of `body`, each with what is wrong with them. `hidden`: a request that must not come out of them.
pub(crate) fn tricks(body: &str, hidden: &str) -> Vec<(&'static str, String)> {
    let size = format!("{:x}", body.len());
    let large = "e".repeat(300_000);
    vec![
        ("a size past 64 bits", format!("1000000000000000{size}\r\n{body}\r\n0\r\n\r\n")),
        ("a negative size", format!("-{size}\r\n{body}\r\n0\r\n\r\n")),
        ("a plus", format!("+{size}\r\n{body}\r\n0\r\n\r\n")),
        ("0x", format!("0x{size}\r\n{body}\r\n0\r\n\r\n")),
        ("an underscore", format!("0_{size}\r\n{body}\r\n0\r\n\r\n")),
        ("no size", format!("\r\n{body}\r\n0\r\n\r\n")),
        ("a size that is no number", format!("xyz\r\n{body}\r\n0\r\n\r\n")),
        ("a size too small", format!("5\r\n{body}\r\n0\r\n\r\n")),
        ("a size too large", format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len() + 2)),
        ("no CRLF behind the data", format!("{size}\r\n{body}0\r\n\r\n")),
        ("LF behind the data", format!("{size}\r\n{body}\n0\r\n\r\n")),
        ("LF behind the size", format!("{size}\n{body}\r\n0\r\n\r\n")),
        ("a space before the size", format!(" {size}\r\n{body}\r\n0\r\n\r\n")),
        ("a space behind the size", format!("{size} \r\n{body}\r\n0\r\n\r\n")),
        ("LF in an extension", format!("{size};a\nb\r\n{body}\r\n0\r\n\r\n")),
        ("CR in an extension", format!("{size};a\rb\r\n{body}\r\n0\r\n\r\n")),
        ("NUL in an extension", format!("{size};a\0b\r\n{body}\r\n0\r\n\r\n")),
        ("a large extension", format!("{size};{large}\r\n{body}\r\n0\r\n\r\n")),
        ("a large trailer", format!("{size}\r\n{body}\r\n0\r\nX-T: {large}\r\n\r\n")),
        ("many trailers", format!("{size}\r\n{body}\r\n0\r\n{}\r\n", "X-T: y\r\n".repeat(20_000))),
        ("a request in an extension", format!("0;\n{hidden}\r\n\r\n")),
    ]
}
