//! What uses the machine up.

use super::*;

/// Too much of everything, by the limits that the suite gives: all of it ends with this process, or soon after.
pub(super) fn bombs(probe: &str) -> Option<Tried> {
    const MIB: usize = 1 << 20;
    match probe {
        "fork bomb" => attempt(|| {
            let mut children = Vec::new();
            let mut forked = Ok(());
            for _ in 0..120 {
                match Command::new("/bin/sleep").arg("5").stdout(Stdio::null()).spawn() {
                    Ok(child) => children.push(child),
                    Err(error) => {
                        forked = Err(error);
                        break;
                    }
                }
            }
            for child in &mut children {
                let _ = child.kill().and_then(|()| child.wait());
            }
            forked
        }),
        "memory bomb" => attempt(|| {
            let processors = thread::available_parallelism().map_or(1, usize::from);
            let mut memory: Vec<u8> = Vec::new();
            let bytes = (64 + 256 + 16 * processors + 128) * MIB;
            memory.try_reserve_exact(bytes).map_err(io::Error::other)?;
            memory.resize(bytes, 1);
            black_box(&memory);
            Ok(())
        }),
        "processor bomb" => attempt(|| {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            let clock = flags(libc::CLOCK_PROCESS_CPUTIME_ID);
            while time.tv_sec < 3 {
                (0..1_000_000_u64).for_each(|number| {
                    black_box(number);
                });
                done(call(libc::SYS_clock_gettime, &[clock, (&raw mut time).addr()]))?;
            }
            Ok(())
        }),
        "one large file" => attempt(|| {
            let written = File::create("large").and_then(|mut file| file.write_all(&vec![1; 2 * MIB]));
            fs::remove_file("large")?;
            written
        }),
        "large files" => attempt(|| fill(16, &vec![1; MIB / 2])),
        "many files" => attempt(|| fill(1_000, &[])),
        "open files" => attempt(|| {
            let files: Vec<_> = (0..100).map(|_| File::open("/dev/null")).collect::<Result<_, _>>()?;
            drop(files);
            Ok(())
        }),
        // For the suite to end, once there is something to live on.
        "outlive the deadline" => attempt(|| {
            orphan(true)?;
            say("waiting");
            thread::sleep(Duration::from_mins(5));
            Ok(())
        }),
        "outlive the program" => attempt(|| orphan(false)),
        _ => None,
    }
}

fn fill(count: usize, with: &[u8]) -> Tried {
    let name = |number: usize| format!("file{number}");
    let written = (0..count).try_for_each(|number| fs::write(name(number), with));
    (0..count).for_each(|number| {
        let _ = fs::remove_file(name(number));
    });
    written
}

/// Leaves a process behind that holds standard output open: in another session, without a parent, deaf to signals.
fn orphan(deaf: bool) -> Tried {
    let script = if deaf { "trap '' TERM HUP INT; sleep 60" } else { "sleep 60" };
    let started = Instant::now();
    // The inner shell has lost its parent when the outer one has ended.
    let left = format!("setsid sh -c \"{script}\" & exit 0");
    let status = Command::new("/bin/sh").args(["-c", &left]).env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).status()?;
    unless(!status.success() || started.elapsed() > Duration::from_secs(50), "it was waited for")
}
