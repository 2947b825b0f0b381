//! Bytes as of compressed sound, made while they are sent: any, always the same, and in no piece those of another, so
//! that one lost or doubled shows.

/// As of who reads a file while it is sent.
const PIECE_BYTES: usize = 64 * 1024;

/// So many bytes, one piece after the other; the last one may be short.
pub fn pieces(bytes: usize) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes).step_by(PIECE_BYTES).map(move |at| piece(at, PIECE_BYTES.min(bytes - at)))
}

fn piece(at: usize, bytes: usize) -> Vec<u8> {
    let mut state = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut piece = Vec::with_capacity(bytes + 8);
    while piece.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.extend_from_slice(&state.to_le_bytes());
    }
    piece.truncate(bytes);
    piece
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_piece_is_like_another() {
        let made: Vec<Vec<u8>> = pieces(2 * PIECE_BYTES + 77).collect();
        assert_eq!(made.iter().map(Vec::len).collect::<Vec<_>>(), [PIECE_BYTES, PIECE_BYTES, 77]);
        assert!(made[0] != made[1] && !made[0].starts_with(&made[2]) && !made[1].starts_with(&made[2]));
        assert_eq!(pieces(0).count(), 0);
    }
}
