use std::{num::NonZero, ops::ControlFlow};

use ncn_gguf::{Finish, GenerateError, Generated, Generator, Message, Prompt, Settings};

use crate::made::{CONTEXT, Field, Made, tokens};

fn open(made: &Made, threads: usize) -> Generator {
    Generator::open(&made.write().0, NonZero::new(threads).unwrap()).unwrap()
}

fn prompt(generator: &Generator, text: &str) -> Vec<u32> {
    generator.tokens(&Prompt::Text(text.into())).unwrap()
}

fn generate(generator: &Generator, prompt: &[u32], settings: &Settings) -> (String, Generated) {
    let mut text = String::new();
    let generated = generator.generate(prompt, settings, |piece, _| {
        text.push_str(piece);
        ControlFlow::Continue(())
    });
    (text, generated.unwrap())
}

#[test]
fn the_same_text_on_any_number_of_threads_and_in_company() {
    let made = Made::model();
    let one = open(&made, 1);
    // Longer than a batch, so that its first tokens are computed together and its last alone.
    let prompt = prompt(&one, "the quick brown fox jumps over the lazy dog. 12345");
    for (seed, temperature) in [(0, 0.0), (1, 0.9), (2, 0.9)] {
        let settings = Settings { seed, temperature, top_p: 0.95, max_tokens: 40, ..Settings::default() };
        let expected = generate(&one, &prompt, &settings);
        for threads in [1, 2, 5] {
            let generator = open(&made, threads);
            std::thread::scope(|scope| {
                let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| generate(&generator, &prompt, &settings))).collect();
                for run in runs {
                    assert_eq!(run.join().unwrap(), expected, "{threads} threads");
                }
            });
        }
    }
    let text = |seed| generate(&one, &prompt, &Settings { seed, temperature: 1.0, ..Settings::default() }).0;
    assert_ne!(text(1), text(2), "another seed, another text");
}

#[test]
fn a_text_ends_at_its_length_its_stop_sequence_or_the_context() {
    let generator = open(&Made::model(), 1);
    let prompt = prompt(&generator, "hello");
    let settings = Settings { max_tokens: 20, ..Settings::default() };
    let (text, generated) = generate(&generator, &prompt, &settings);
    assert_eq!(generated, Generated { tokens: 20, finish: Finish::Length });

    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[3..6].iter().collect();
    let end = text.find(&stop).unwrap();
    let (stopped, generated) = generate(&generator, &prompt, &Settings { stop: vec![stop], ..settings });
    assert_eq!((stopped.as_str(), generated.finish), (&text[..end], Finish::Stop));

    let settings = Settings { max_tokens: 10_000, ..Settings::default() };
    let (_, generated) = generate(&generator, &prompt, &settings);
    assert_eq!(generated, Generated { tokens: CONTEXT as usize - prompt.len(), finish: Finish::Length });
}

#[test]
fn the_token_that_ends_a_text_is_counted_and_not_given() {
    let made = Made::model();
    let first_token = |end: u32| {
        let made = made.clone().with("tokenizer.ggml.eos_token_id", Field::U32(end));
        let generator = open(&made, 1);
        generate(&generator, &prompt(&generator, "a"), &Settings { max_tokens: 2, ..Settings::default() })
    };
    let ended: Vec<_> = (0..tokens().len() as u32).map(first_token).filter(|(_, generated)| generated.tokens == 1).collect();
    assert_eq!(ended.len(), 1, "one of all tokens is the first one");
    assert_eq!(ended[0].1.finish, Finish::Stop);
}

#[test]
fn positions_are_scaled_by_whichever_field_says_so() {
    let text = |fields: &[(&str, Field)]| {
        let made = fields.iter().fold(Made::model(), |made, (name, field)| made.with(name, field.clone()));
        let generator = open(&made, 1);
        let settings = Settings { max_tokens: 24, temperature: 2.0, seed: 1, ..Settings::default() };
        generate(&generator, &prompt(&generator, "the cat sat on the mat, and the dog"), &settings).0
    };
    let (factor, linear) = ("llama.rope.scaling.factor", "llama.rope.scale_linear");
    let (kind, of) = ("llama.rope.scaling.type", |kind: &str| Field::Text(kind.into()));
    let scaled = text(&[(kind, of("linear")), (factor, Field::F32(8.0))]);
    let plain = text(&[]);
    assert_ne!(scaled, plain);
    assert_eq!(text(&[(factor, Field::F32(8.0))]), scaled);
    assert_eq!(text(&[(linear, Field::F32(8.0))]), scaled);
    assert_eq!(text(&[(kind, of("none")), (factor, Field::F32(8.0))]), plain);
    assert_eq!(text(&[(factor, Field::F32(0.0))]), plain);
}

/// Files name one end of several, and call the others what they like: a text ends there all the same, and none of them is part of it.
#[test]
fn texts_end_where_models_end_them() {
    let made = Made::model();
    let ended = |made: &Made| {
        let generator = open(made, 1);
        generate(&generator, &prompt(&generator, "a"), &Settings { max_tokens: 2, ..Settings::default() })
    };
    let count = tokens().len() as u32;
    let first =
        (0..count).find(|id| ended(&made.clone().with("tokenizer.ggml.eos_token_id", Field::U32(*id))).1.tokens == 1).unwrap();
    let named = made.clone().with("tokenizer.ggml.eom_token_id", Field::U32(first));
    assert_eq!((ended(&named).0.as_str(), ended(&named).1.tokens), ("", 1), "by its number");
    // A normal one, a control token, and a word of the user's.
    for kind in [1, 3, 4] {
        for (end, ends) in [("<|eom_id|>", true), ("<end_of_turn>", true), ("<|end|>", true), ("<EOT>", true), ("</s>", kind == 3)]
        {
            let mut texts = tokens();
            texts[first as usize] = end.into();
            let mut kinds = vec![1; texts.len()];
            kinds[texts.len() - 2..].fill(3);
            kinds[first as usize] = kind;
            let made = made
                .clone()
                .with("tokenizer.ggml.tokens", Field::Texts(texts))
                .with("tokenizer.ggml.token_type", Field::Integers(kinds));
            let (text, generated) = ended(&made);
            assert_eq!((generated.tokens == 1, text.contains(end)), (ends, !ends && kind != 3), "{end} of kind {kind}: {text}");
        }
    }
}

#[test]
fn nothing_is_computed_once_the_caller_breaks() {
    let generator = open(&Made::model(), 1);
    let prompt = prompt(&generator, &"ab ".repeat(20));
    for allowed in 0..5 {
        let mut calls = 0;
        let generated = generator.generate(&prompt, &Settings::default(), |_, _| {
            calls += 1;
            if calls > allowed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let generated = generated.unwrap();
        assert_eq!((generated.finish, calls), (Finish::Break, allowed + 1));
        assert!(generated.tokens <= allowed);
    }
}

#[test]
fn the_chat_template_puts_messages_into_words() {
    let made = Made::model();
    let generator = open(&made, 1);
    let messages = Prompt::Messages(vec![Message { role: "user".into(), content: " the cat ".into() }]);
    let expected = generator.tokens(&Prompt::Text("<s>user: the cat\n<s>assistant: ".into())).unwrap();
    assert_eq!(generator.tokens(&messages).unwrap(), expected);
    assert_eq!(expected[0] as usize, tokens().len() - 2, "a control token is one token");

    for (template, problem) in [
        ("{{ raise_exception('roles have to alternate') }}", "roles have to alternate"),
        ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", "fuel"),
        ("{% for i in range(10000) %}more than fits {% endfor %}", "shorten"),
        ("{{ messages.nothing.at_all }}", "undefined"),
    ] {
        let made = made.clone().with("tokenizer.chat_template", Field::Text(template.into()));
        let error = open(&made, 1).tokens(&messages).unwrap_err().to_string();
        assert!(error.starts_with("`messages` ") && error.contains(problem), "{error}");
    }
    let error = open(&made.without("tokenizer.chat_template"), 1).tokens(&messages).unwrap_err();
    assert!(error.to_string().contains("send `prompt`"), "{error}");
}

/// What templates in use are written with; what they make of one message is what Python's Jinja makes of it.
#[test]
fn chat_templates_may_use_what_pythons_have() {
    let made = Made::model();
    let messages = Prompt::Messages(vec![Message { role: "user".into(), content: "a b/c <é>".into() }]);
    for (template, expected) in [
        (
            "{% for m in messages %}{% if m.role != 'user' %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}",
            "a b/c <é>",
        ),
        ("{% generation %}{{ messages[0].content }}{%- endgeneration -%} x", "a b/c <é>x"),
        ("{{ messages[0].content.rsplit(' ', 1)[0] }}|{{ 'a.b.c'.rsplit('.', 1) | join(',') }}", "a b/c|a.b,c"),
        ("{{ messages[0].content.removeprefix('a ').removesuffix('>') }}", "b/c <é"),
        ("{{ messages[0].content | tojson }}", "\"a b/c <é>\""),
        (
            "{{ {'k': [1, messages[0].content, true, none]} | tojson(ensure_ascii=true) }}",
            "{\"k\": [1, \"a b/c <\\u00e9>\", true, null]}",
        ),
        ("{{ {'k': [1, {}]} | tojson(indent=2) }}", "{\n  \"k\": [\n    1,\n    {}\n  ]\n}"),
        ("{{ [1] | tojson(indent=1000000000) | length }}", "37"),
        ("{# {% generation %} once {% endgeneration %} #}x{% generation %} y{% endgeneration %}", "x y"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% if messages | length > 1 %}{{ raise_exception('one question only') }}{% endif %}ok", "ok"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}ok", "ok"),
    ] {
        let made = made.clone().with("tokenizer.chat_template", Field::Text(template.into()));
        let generator = open(&made, 1);
        assert_eq!(generator.template_problem(), None, "{template}");
        let expected = generator.tokens(&Prompt::Text(expected.into())).unwrap();
        assert_eq!(generator.tokens(&messages).unwrap(), expected, "{template}");
    }
    // What cannot be used is known when the file is opened; other prompts are taken.
    for (template, problem) in [
        ("{% for %}", "cannot be read"),
        ("{{ '%02d' % 7 }}", "tried to use"),
        ("{{ messages[0].content.swapcase() }}", "swapcase"),
        ("{{ strftime_now('%!') }}", "strftime"),
        (
            "{% set n = namespace(v=[]) %}{% for _ in range(100) %}{% set n.v = [n.v] %}{% endfor %}{{ n.v | tojson }}",
            "deeper than",
        ),
    ] {
        let generator = open(&made.clone().with("tokenizer.chat_template", Field::Text(template.into())), 1);
        let said = generator.template_problem().unwrap();
        assert!(said.contains(problem), "{template}: {said}");
        assert!(generator.tokens(&Prompt::Text("the cat".into())).is_ok());
        let refused = generator.tokens(&messages).unwrap_err().to_string();
        assert!(refused.contains("send `prompt`"), "{refused}");
    }
}

#[test]
fn prompts_that_make_no_sense_are_refused_by_name() {
    let generator = open(&Made::model(), 1);
    for text in [String::new(), "xy".repeat(CONTEXT as usize), "x".repeat(1 << 20)] {
        let error = generator.tokens(&Prompt::Text(text)).unwrap_err();
        assert!(matches!(&error, GenerateError::Refused { name, .. } if name == "prompt"), "{error}");
    }
    let longest = "x".repeat(CONTEXT as usize - 1);
    assert_eq!(generate(&generator, &prompt(&generator, &longest), &Settings::default()).1.tokens, 1);
    let messages = vec![Message { role: "user".into(), content: "x ".repeat(1 << 16) }];
    assert!(generator.tokens(&Prompt::Messages(messages)).is_err());
    let refused =
        generator.generate(&[1], &Settings { temperature: f32::NAN, ..Settings::default() }, |_, _| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(GenerateError::Refused { .. })));
}

#[test]
fn memory_is_told_before_it_is_taken() {
    let generator = open(&Made::model(), 1);
    assert!(generator.weight_bytes() > 60_000);
    // Keys and values of two layers, two heads of 16 elements, 256 tokens at a time.
    assert_eq!(generator.text_bytes(1), 2 * 2 * 2 * 16 * 256 * 4);
    assert_eq!(generator.text_bytes(257), 2 * generator.text_bytes(256));
}
