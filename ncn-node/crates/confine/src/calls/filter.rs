//! Turns verdicts into a program for the kernel.
//!
//! The calls are found by halving, in nine comparisons rather than hundreds: the kernel runs the program for every call there is when
//! it is loaded, which is most of what loading costs.

use libc::c_long;
use seccompiler::sock_filter;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// It is made.
    Allow,
    /// It is made if its arguments pass; otherwise `EPERM`.
    AllowIf(&'static Test),
    /// `ENOSYS`: said not to exist.
    Unknown,
    /// `EPERM`.
    Refuse,
}

/// A test of a call's arguments, of which the lower 32 bits count unless said otherwise.
#[derive(Debug, PartialEq)]
pub(super) enum Test {
    /// These bits of this argument have this value.
    Bits(u8, u32, u32),
    /// This argument has none of these values.
    Not(u8, &'static [u32]),
    /// This argument is null, all 64 bits of it.
    NoPointer(u8),
    /// One of these passes.
    Any(&'static [Test]),
    /// All of these pass.
    All(&'static [Test]),
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
/// Where the kernel puts a call's number, the architecture and the arguments.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

const ALLOW: sock_filter = statement(RETURN, libc::SECCOMP_RET_ALLOW);
const REFUSE: sock_filter = statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned());
const UNKNOWN: sock_filter = statement(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned());
const KILL: sock_filter = statement(RETURN, libc::SECCOMP_RET_KILL_PROCESS);

const fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// The program for these verdicts; calls that have none are refused.
pub(super) fn assemble(verdicts: &[(c_long, Verdict)]) -> Vec<sock_filter> {
    let mut program = vec![
        statement(LOAD, ARCHITECTURE_AT),
        // Another architecture's calls have other numbers.
        sock_filter { code: JUMP_IF_EQUAL, jt: 1, jf: 0, k: ARCHITECTURE },
        KILL,
        statement(LOAD, NUMBER_AT),
    ];
    program.extend(search(&ranges(verdicts)));
    program
}

/// The verdicts as ranges: each begins at its number and goes on to the next one's.
fn ranges(verdicts: &[(c_long, Verdict)]) -> Vec<(u32, Verdict)> {
    let mut known: Vec<(u32, Verdict)> =
        verdicts.iter().filter_map(|(call, verdict)| Some((u32::try_from(*call).ok()?, *verdict))).collect();
    known.sort_by_key(|(call, _)| *call);
    let mut ranges = vec![(0, Verdict::Refuse)];
    let mut begin = |number: u32, verdict: Verdict| {
        ranges.pop_if(|(start, _)| *start == number);
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number, verdict));
        }
    };
    for (call, verdict) in known {
        begin(call, verdict);
        begin(call.saturating_add(1), Verdict::Refuse);
    }
    ranges
}

/// Finds the number's range by halving.
fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    let (below, above) = ranges.split_at(ranges.len() / 2);
    match (below, above) {
        ([], [(_, verdict)]) => decide(*verdict),
        (_, [(middle, _), ..]) if !below.is_empty() => {
            let below = search(below);
            let mut program = vec![
                sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: *middle },
                // By a jump of its own: a conditional one is not long enough.
                statement(JUMP, u32::try_from(below.len()).unwrap_or(u32::MAX)),
            ];
            program.extend(below);
            program.extend(search(above));
            program
        }
        _ => vec![REFUSE],
    }
}

fn decide(verdict: Verdict) -> Vec<sock_filter> {
    match verdict {
        Verdict::Allow => vec![ALLOW],
        Verdict::Refuse => vec![REFUSE],
        Verdict::Unknown => vec![UNKNOWN],
        Verdict::AllowIf(test) => branch(test, &[ALLOW], &[REFUSE]),
    }
}

/// Goes on with `pass` or `fail`, which both end the program.
fn branch(test: &Test, pass: &[sock_filter], fail: &[sock_filter]) -> Vec<sock_filter> {
    match test {
        Test::Bits(argument, mask, value) => {
            let mut program = vec![statement(LOAD, lower(*argument)), statement(AND, *mask)];
            program.extend(equal(*value, pass, fail));
            program
        }
        Test::Not(argument, values) => {
            let mut rest = pass.to_vec();
            for value in *values {
                rest = equal(*value, fail, &rest);
            }
            rest.insert(0, statement(LOAD, lower(*argument)));
            rest
        }
        Test::NoPointer(argument) => {
            let mut upper = vec![statement(LOAD, lower(*argument) + 4)];
            upper.extend(equal(0, pass, fail));
            let mut program = vec![statement(LOAD, lower(*argument))];
            program.extend(equal(0, &upper, fail));
            program
        }
        Test::Any(tests) => tests.iter().rev().fold(fail.to_vec(), |rest, test| branch(test, pass, &rest)),
        Test::All(tests) => tests.iter().rev().fold(pass.to_vec(), |rest, test| branch(test, &rest, fail)),
    }
}

fn equal(value: u32, then: &[sock_filter], otherwise: &[sock_filter]) -> Vec<sock_filter> {
    // Tests are short: `otherwise` is always within a conditional jump's reach.
    let skip = u8::try_from(otherwise.len()).unwrap_or(u8::MAX);
    let mut program = vec![sock_filter { code: JUMP_IF_EQUAL, jt: skip, jf: 0, k: value }];
    program.extend_from_slice(otherwise);
    program.extend_from_slice(then);
    program
}

/// Where an argument's lower half is. Both architectures have it first.
fn lower(argument: u8) -> u32 {
    ARGUMENTS_AT + 8 * u32::from(argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

    /// What the kernel would make of it.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            match code {
                LOAD => {
                    value = match k {
                        NUMBER_AT => number,
                        ARCHITECTURE_AT => architecture,
                        k => (arguments[((k - ARGUMENTS_AT) / 8) as usize] >> (8 * (k % 8)) & u64::from(u32::MAX))
                            .try_into()
                            .unwrap(),
                    }
                }
                AND => value &= k,
                JUMP => at += k as usize,
                JUMP_IF_EQUAL => at += usize::from(if value == k { jt } else { jf }),
                JUMP_IF_AT_LEAST => at += usize::from(if value >= k { jt } else { jf }),
                RETURN => return k,
                _ => panic!("{code:#x} at {at}"),
            }
        }
    }

    #[test]
    fn every_call_gets_its_verdict() {
        static TEST: Test = Test::Bits(0, 0xff, 7);
        let verdicts = crate::calls::verdicts();
        let program = assemble(&verdicts);
        for number in (0..600).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            let known = verdicts.iter().find(|(call, _)| u32::try_from(*call) == Ok(number)).map(|(_, verdict)| verdict);
            let got = run(&program, ARCHITECTURE, number, [0; 6]);
            match known {
                Some(Verdict::Allow) => assert_eq!(got, libc::SECCOMP_RET_ALLOW, "{number}"),
                Some(Verdict::Unknown) => assert_eq!(got, UNKNOWN.k, "{number}"),
                Some(_) => {}
                None => assert_eq!(got, EPERM, "{number}"),
            }
        }
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS, "32-bit calls");
        let program = assemble(&[(3, Verdict::AllowIf(&TEST)), (4, Verdict::Allow)]);
        let got = [2, 3, 4, 5].map(|number| run(&program, ARCHITECTURE, number, [0x1_0000_0007, 0, 0, 0, 0, 0]));
        assert_eq!(got, [EPERM, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ALLOW, EPERM]);
    }

    #[test]
    fn arguments_are_tested() {
        static BITS: Test = Test::Bits(1, 0xf0, 0x10);
        static NOT: Test = Test::Not(0, &[3, 5]);
        static NULL: Test = Test::NoPointer(2);
        static ANY: Test = Test::Any(&[Test::Bits(0, 1, 1), Test::Bits(1, 1, 1)]);
        static ALL: Test = Test::All(&[Test::Bits(0, 1, 1), Test::Any(&[Test::Bits(1, 1, 1), Test::NoPointer(2)])]);
        let passes = |test: &'static Test, arguments: [u64; 3]| {
            let program = assemble(&[(1, Verdict::AllowIf(test))]);
            let [a, b, c] = arguments;
            run(&program, ARCHITECTURE, 1, [a, b, c, 0, 0, 0]) == libc::SECCOMP_RET_ALLOW
        };
        assert!(passes(&BITS, [0, 0x1f, 0]) && !passes(&BITS, [0x10, 0x2f, 0x10]));
        assert_eq!([2, 3, 4, 5].map(|value| passes(&NOT, [value, 0, 0])), [true, false, true, false]);
        assert_eq!([0, 1, 1 << 32].map(|value| passes(&NULL, [0, 0, value])), [true, false, false]);
        assert!(passes(&ANY, [1, 0, 0]) && passes(&ANY, [0, 1, 0]) && !passes(&ANY, [0, 0, 1]));
        assert!(passes(&ALL, [1, 0, 0]) && passes(&ALL, [1, 1, 9]) && !passes(&ALL, [1, 0, 9]) && !passes(&ALL, [0, 1, 0]));
    }
}
