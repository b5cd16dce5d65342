//! How fast a GGUF file generates: `cargo run --release -p ncn-gguf --example rate -- FILE THREADS TOKENS [PROMPT]`.
#![allow(clippy::print_stdout, reason = "printing is all that it does")]

use std::{error::Error, num::NonZero, ops::ControlFlow, time::Instant};

use ncn_gguf::{Generator, Prompt, Settings};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, threads, tokens, prompt @ ..] = arguments.as_slice() else { return Err("give FILE THREADS TOKENS [PROMPT]".into()) };
    let started = Instant::now();
    let generator = Generator::open(&std::fs::read(file)?, threads.parse::<NonZero<usize>>()?)?;
    println!("opened in {:?}", started.elapsed());
    let prompt = Prompt::Text(prompt.first().map_or("1, 2, 3, 4, 5, 6, 7, 8,", String::as_str).into());
    let prompt = generator.tokens(&prompt)?;
    let settings = Settings { max_tokens: tokens.parse()?, ..Settings::default() };
    for _ in 0..3 {
        let started = Instant::now();
        let (mut text, mut first) = (String::new(), None);
        let generated = generator.generate(&prompt, &settings, |piece, _| {
            text.push_str(piece);
            if !piece.is_empty() {
                first.get_or_insert_with(|| started.elapsed());
            }
            ControlFlow::Continue(())
        })?;
        let first = first.unwrap_or_default();
        let rest = started.elapsed().saturating_sub(first);
        #[allow(clippy::cast_precision_loss, reason = "a count of tokens is small")]
        let rate = generated.tokens.saturating_sub(1) as f64 / rest.as_secs_f64();
        println!(
            "{threads} threads, {} tokens, {generated:?}, first text after {first:?}, then {rate:.1} tokens/s: {text:?}",
            prompt.len()
        );
    }
    Ok(())
}
