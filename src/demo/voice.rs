//! The voices there are, and which engine speaks them.

/// A voice as a catalogue lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Voice {
    /// What a request calls it.
    pub id: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// Its language, as a BCP 47 tag.
    pub language: &'static str,
    pub(super) engine: Engine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    Flite {
        voice: &'static str,
    },
    /// `pitch` is 0 to 99.
    Espeak {
        voice: &'static str,
        pitch: u8,
    },
}

/// Every voice, in the order it is listed.
pub fn voices() -> Vec<Voice> {
    VOICES.to_vec()
}

impl Voice {
    pub(super) fn find(id: &str) -> Option<Self> {
        VOICES.iter().find(|voice| voice.id == id).copied()
    }
}

const fn flite(id: &'static str, name: &'static str, language: &'static str) -> Voice {
    Voice { id, name, language, engine: Engine::Flite { voice: id } }
}

const fn espeak(id: &'static str, name: &'static str, language: &'static str, voice: &'static str, pitch: u8) -> Voice {
    Voice { id, name, language, engine: Engine::Espeak { voice, pitch } }
}

/// eSpeak NG's own default.
const PITCH: u8 = 50;

/// flite's recorded English; OpenAI's names, so that a client written for them speaks unchanged; languages by code.
/// `cmn` is spoken through Pinyin: the plain voice of that name spells Chinese characters out in English.
#[rustfmt::skip]
static VOICES: &[Voice] = &[
    flite("rms", "RMS", "en-US"),
    flite("slt", "SLT", "en-US"),
    flite("awb", "AWB", "en-GB"),
    flite("kal16", "KAL", "en-US"),
    espeak("alloy", "Alloy", "en-US", "en-us+f5", 40),
    espeak("ash", "Ash", "en-US", "en-us+m1", 45),
    espeak("ballad", "Ballad", "en-US", "en-us+m4", 50),
    espeak("cedar", "Cedar", "en-US", "en-us+m5", 30),
    espeak("coral", "Coral", "en-US", "en-us+f2", 55),
    espeak("echo", "Echo", "en-US", "en-us+m2", 45),
    espeak("fable", "Fable", "en-GB", "en-gb+m3", 50),
    espeak("marin", "Marin", "en-GB", "en-gb+f3", 50),
    espeak("nova", "Nova", "en-US", "en-us+f3", 60),
    espeak("onyx", "Onyx", "en-US", "en-us+m7", 20),
    espeak("sage", "Sage", "en-US", "en-us+f4", 45),
    espeak("shimmer", "Shimmer", "en-US", "en-us+f2", 75),
    espeak("verse", "Verse", "en-US", "en-us+m6", 50),
    espeak("ar", "Arabic", "ar", "ar", PITCH),
    espeak("bg", "Bulgarian", "bg", "bg", PITCH),
    espeak("bn", "Bengali", "bn", "bn", PITCH),
    espeak("ca", "Catalan", "ca", "ca", PITCH),
    espeak("cmn", "Mandarin Chinese", "cmn", "cmn-latn-pinyin", PITCH),
    espeak("cs", "Czech", "cs", "cs", PITCH),
    espeak("cy", "Welsh", "cy", "cy", PITCH),
    espeak("da", "Danish", "da", "da", PITCH),
    espeak("de", "German", "de", "de", PITCH),
    espeak("el", "Greek", "el", "el", PITCH),
    espeak("en-gb", "British English", "en-GB", "en-gb", PITCH),
    espeak("en-us", "American English", "en-US", "en-us", PITCH),
    espeak("eo", "Esperanto", "eo", "eo", PITCH),
    espeak("es", "Spanish", "es", "es", PITCH),
    espeak("es-419", "Latin American Spanish", "es-419", "es-419", PITCH),
    espeak("et", "Estonian", "et", "et", PITCH),
    espeak("eu", "Basque", "eu", "eu", PITCH),
    espeak("fa", "Persian", "fa", "fa", PITCH),
    espeak("fi", "Finnish", "fi", "fi", PITCH),
    espeak("fr", "French", "fr", "fr", PITCH),
    espeak("ga", "Irish", "ga", "ga", PITCH),
    espeak("gu", "Gujarati", "gu", "gu", PITCH),
    espeak("hi", "Hindi", "hi", "hi", PITCH),
    espeak("hr", "Croatian", "hr", "hr", PITCH),
    espeak("hu", "Hungarian", "hu", "hu", PITCH),
    espeak("hy", "Armenian", "hy", "hy", PITCH),
    espeak("id", "Indonesian", "id", "id", PITCH),
    espeak("is", "Icelandic", "is", "is", PITCH),
    espeak("it", "Italian", "it", "it", PITCH),
    espeak("ka", "Georgian", "ka", "ka", PITCH),
    espeak("kn", "Kannada", "kn", "kn", PITCH),
    espeak("ko", "Korean", "ko", "ko", PITCH),
    espeak("la", "Latin", "la", "la", PITCH),
    espeak("lt", "Lithuanian", "lt", "lt", PITCH),
    espeak("lv", "Latvian", "lv", "lv", PITCH),
    espeak("mk", "Macedonian", "mk", "mk", PITCH),
    espeak("ml", "Malayalam", "ml", "ml", PITCH),
    espeak("mr", "Marathi", "mr", "mr", PITCH),
    espeak("ms", "Malay", "ms", "ms", PITCH),
    espeak("mt", "Maltese", "mt", "mt", PITCH),
    espeak("nb", "Norwegian", "nb", "nb", PITCH),
    espeak("ne", "Nepali", "ne", "ne", PITCH),
    espeak("nl", "Dutch", "nl", "nl", PITCH),
    espeak("pa", "Punjabi", "pa", "pa", PITCH),
    espeak("pl", "Polish", "pl", "pl", PITCH),
    espeak("pt", "Portuguese", "pt", "pt", PITCH),
    espeak("pt-br", "Brazilian Portuguese", "pt-BR", "pt-br", PITCH),
    espeak("ro", "Romanian", "ro", "ro", PITCH),
    espeak("ru", "Russian", "ru", "ru", PITCH),
    espeak("sk", "Slovak", "sk", "sk", PITCH),
    espeak("sl", "Slovenian", "sl", "sl", PITCH),
    espeak("sq", "Albanian", "sq", "sq", PITCH),
    espeak("sr", "Serbian", "sr", "sr", PITCH),
    espeak("sv", "Swedish", "sv", "sv", PITCH),
    espeak("sw", "Swahili", "sw", "sw", PITCH),
    espeak("ta", "Tamil", "ta", "ta", PITCH),
    espeak("te", "Telugu", "te", "te", PITCH),
    espeak("tr", "Turkish", "tr", "tr", PITCH),
    espeak("uk", "Ukrainian", "uk", "uk", PITCH),
    espeak("ur", "Urdu", "ur", "ur", PITCH),
    espeak("vi", "Vietnamese", "vi", "vi", PITCH),
    espeak("yue", "Cantonese", "yue", "yue", PITCH),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_voice_is_found_by_its_id_and_by_nothing_else() {
        let ids: HashSet<_> = voices().iter().map(|voice| voice.id).collect();
        assert_eq!(ids.len(), VOICES.len(), "every id is there once");
        for voice in voices() {
            assert_eq!(Voice::find(voice.id), Some(voice));
        }
        assert_eq!(Voice::find("RMS"), None);
        assert_eq!(Voice::find(""), None);
    }

    #[test]
    fn no_two_voices_sound_the_same() {
        let engines: HashSet<_> = voices().iter().map(|voice| format!("{:?}", voice.engine)).collect();
        assert_eq!(engines.len(), VOICES.len());
    }

    #[test]
    fn the_names_of_openai_speak_english() {
        let names = "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse";
        for name in names.split(' ') {
            assert!(Voice::find(name).is_some_and(|voice| voice.language.starts_with("en-")), "{name}");
        }
    }
}
