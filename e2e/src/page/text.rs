//! Numbers, and texts of others, as the page shows them.

/// Longer outputs are cut off; the JSON report has them whole.
pub(super) const OUTPUT_SHOWN: usize = 2_000;

/// With a narrow space between thousands.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut said = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            said.push('\u{202f}');
        }
        said.push(digit);
    }
    said
}

/// An output, cut off if it is long.
pub(super) fn shown(text: &str) -> String {
    let all = text.chars().count();
    if all <= OUTPUT_SHOWN {
        return visible(text);
    }
    let start: String = text.chars().take(OUTPUT_SHOWN).collect();
    format!("{} ... ({} more characters are in the JSON report)", visible(&start), all - OUTPUT_SHOWN)
}

/// The text with a name for each character that can't be seen, or that would reorder what is around it.
pub(super) fn visible(text: &str) -> String {
    let mut said = String::with_capacity(text.len());
    for letter in text.chars() {
        let hidden = matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if hidden || (letter.is_control() && !matches!(letter, '\n' | '\t')) {
            said.extend(letter.escape_unicode());
        } else {
            said.push(letter);
        }
    }
    said
}
