//! Sources that fail, lag and lie.

use ncn_node::server::{LOOPBACK, Server as NodeServer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
};

use super::*;
use crate::wait::in_time;

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_is_caught_and_the_next_one_asked() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("a", &a), ("empty", b"")]).await;
    let honest = Server::start(origin.store.directory(), Behavior::Honest).await;
    for (behavior, says) in [
        (Behavior::Wrong, "gave other bytes"),
        (Behavior::TooLong, "300010 bytes, the manifest says 300000"),
        (Behavior::TooShort, "299990 bytes, the manifest says 300000"),
        (Behavior::Missing, "is not there"),
        (Behavior::Drips, "too little came"),
        (Behavior::Hangs, "nothing has come"),
        (Behavior::Garbage, "source http"),
    ] {
        let liar = Server::start(origin.store.directory(), behavior).await;
        // Only what never comes is waited for in vain. What is honest in those answers comes within that time too.
        let silent = matches!(behavior, Behavior::Drips | Behavior::Hangs);
        let source = || if silent { liar.source().with_timeout(Duration::from_secs(3)) } else { liar.source() };
        let scene = empty();
        let error = pull(&scene, &model, &[source()]).await.unwrap_err().to_string();
        assert!(error.contains(says) || behavior == Behavior::Garbage, "{behavior:?}: {error}");
        let left: u64 =
            fs::read_dir(scene.store.directory().join("blobs/sha256")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(left <= 300_000, "{behavior:?}: {left} bytes are kept");
        let there = scene.store.find("model").unwrap();
        assert!(there.missing.iter().any(|file| file.path == "a"), "{behavior:?}");

        pull(&scene, &model, &[source(), honest.source()]).await.unwrap();
        assert_eq!(fs::read(scene.store.package("model").await.unwrap().directory.join("a")).unwrap(), a, "{behavior:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_gives_more_than_it_was_asked_for_is_cut_off() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("a", &a)]).await;
    let scene = empty();
    let dying = Server::start(origin.store.directory(), Behavior::Dies { after: 10_000 }).await;
    let more = Server::start(origin.store.directory(), Behavior::MoreThanRange).await;
    // The first leaves a beginning, so that the second is asked for a range.
    let error = pull(&scene, &model, &[dying.source(), more.source()]).await.unwrap_err().to_string();
    assert!(error.contains("gave more bytes"), "{error}");
    assert!(fs::metadata(blob(&scene.store, &model, "a").with_extension("partial")).unwrap().len() <= 300_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_not_fetched_again() {
    let a = content(3_000_000, 1);
    let (origin, model) = with(&[("a", &a)]).await;
    let scene = empty();
    // It breaks off in every answer, and is asked for the rest each time.
    let dying = Server::start(origin.store.directory(), Behavior::Dies { after: 1_200_000 }).await;
    pull(&scene, &model, &[dying.source()]).await.unwrap();
    let starts: Vec<_> = dying.asked("/blobs/").into_iter().map(|(_, start)| start).collect();
    assert_eq!(starts, [None, Some(1_200_000), Some(2_400_000)]);
    assert_eq!(dying.sent(), 3_000_000, "each byte once");

    // The same across calls, of which the first is dropped in the middle.
    let scene = empty();
    let stuck = Server::start(origin.store.directory(), Behavior::StopsAt { byte: 1_000_000 }).await;
    let partial = blob(&scene.store, &model, "a").with_extension("partial");
    let sources = [stuck.source()];
    tokio::select! {
        done = pull(&scene, &model, &sources) => panic!("{done:?}"),
        () = eventually("the first million comes", async || size(&partial) >= 1_000_000) => {}
    }
    let honest = Server::start(origin.store.directory(), Behavior::Honest).await;
    let progress = Progress::default();
    scene.store.pull(&model, &[honest.source()], &progress).await.unwrap();
    assert_eq!(honest.asked("/blobs/").into_iter().map(|(_, start)| start).collect::<Vec<_>>(), [Some(1_000_000)]);
    assert_eq!((honest.sent(), progress.done(), progress.total()), (2_000_000, 3_000_000, 3_000_000));
    pull(&scene, &model, &[honest.source()]).await.unwrap();
    assert_eq!(honest.sent(), 2_000_000, "nothing is fetched twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_beginning_is_begun_again() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("a", &a)]).await;
    let honest = Server::start(origin.store.directory(), Behavior::Honest).await;
    for beginning in [vec![0; 1_000], vec![7; 300_000], vec![7; 400_000]] {
        let scene = empty();
        fs::write(blob(&scene.store, &model, "a").with_extension("partial"), beginning).unwrap();
        let progress = Progress::default();
        scene.store.pull(&model, &[honest.source()], &progress).await.unwrap();
        assert_eq!(progress.done(), 300_000);
        scene.store.package("model").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_ranges_is_read_from_the_beginning() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("a", &a)]).await;
    let scene = empty();
    fs::write(blob(&scene.store, &model, "a").with_extension("partial"), &a[..100_000]).unwrap();
    let plain = Server::start(origin.store.directory(), Behavior::NoRanges).await;
    pull(&scene, &model, &[plain.source()]).await.unwrap();
    scene.store.package("model").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_other_makes_are_sources() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("a", &a), ("empty", b"")]).await;
    for behavior in [Behavior::NoLength, Behavior::OddDate, Behavior::Busy] {
        let server = Server::start(origin.store.directory(), behavior).await;
        for begun in [0, 100_000] {
            let scene = empty();
            if begun > 0 {
                fs::write(blob(&scene.store, &model, "a").with_extension("partial"), &a[..begun]).unwrap();
            }
            pull(&scene, &model, &[server.source()]).await.unwrap_or_else(|error| panic!("{behavior:?}: {error}"));
            assert_eq!(fs::read(scene.store.package("model").await.unwrap().directory.join("a")).unwrap(), a, "{behavior:?}");
        }
    }
    let refused = Source::to_push_to("http://127.0.0.1:1/").unwrap_err();
    assert!(refused.to_string().contains("is read only"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_fetch_the_same_file_fetch_it_once() {
    let a = content(2_000_000, 1);
    let (origin, model) = with(&[("a", &a), ("b", &a[1..])]).await;
    let scene = empty();
    let honest = Server::start(origin.store.directory(), Behavior::Honest).await;
    let sources = [honest.source()];
    let (first, second) = tokio::join!(pull(&scene, &model, &sources), pull(&scene, &model, &sources));
    first.unwrap();
    second.unwrap();
    assert_eq!(honest.asked("/blobs/").len(), 2, "one request a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_removed_while_it_comes_is_not_there_afterwards() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("a", &a)]).await;
    let scene = empty();
    let stuck = Server::start(origin.store.directory(), Behavior::StopsAt { byte: 100_000 }).await;
    let partial = blob(&scene.store, &model, "a").with_extension("partial");
    let sources = [stuck.source()];
    let pulling = pull(&scene, &model, &sources);
    let removing = async {
        eventually("a third comes", async || size(&partial) >= 100_000).await;
        scene.store.remove(&model).await.unwrap();
        stuck.go_on();
    };
    let (pulled, ()) = tokio::join!(pulling, removing);
    assert!(matches!(pulled, Err(ModelStoreError::Removed(_))), "{pulled:?}");
    assert!(scene.store.find("model").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_serves_its_store_and_nothing_else() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("dir/a", &a), ("b", b"b")]).await;
    let server = NodeServer::start(LOOPBACK.into(), origin.store.routes()).unwrap();
    let source = Source::new(&server.url()).unwrap();
    let digest = hex::encode(model.digest());
    for reference in ["model", "model@1", &digest] {
        assert_eq!(source.model(reference).await.unwrap().digest(), model.digest());
    }
    for reference in ["modul", "model@2", &"0".repeat(64)] {
        assert!(source.model(reference).await.unwrap_err().to_string().contains("is not there"), "{reference}");
    }
    let scene = empty();
    fs::write(blob(&scene.store, &model, "dir/a").with_extension("partial"), &a[..100_000]).unwrap();
    pull(&scene, &model, &[source]).await.unwrap();
    assert_eq!(fs::read(scene.store.package("model").await.unwrap().directory.join("dir/a")).unwrap(), a);

    let http = reqwest::Client::new();
    let status = async |path: &str| http.get(format!("{}{path}", server.url())).send().await.unwrap().status().as_u16();
    assert_eq!(status(&format!("/manifests/{digest}.json")).await, 200);
    for path in [
        "/".to_owned(),
        "/lock".into(),
        "/manifests/".into(),
        format!("/manifests/{digest}"),
        format!("/packages/{digest}/manifest.json"),
        format!("/blobs/sha256/{digest}.partial"),
        "/names/..%2Flock".into(),
        "/names/%2e%2e%2flock".into(),
        "/blobs/sha256/..%2F..%2F..%2Flock".into(),
    ] {
        assert_eq!(status(&path).await, 404, "{path}");
    }
    let range = http.get(format!("{}/manifests/{digest}.json", server.url())).header("range", "bytes=1-3").send().await.unwrap();
    assert_eq!((range.status().as_u16(), range.bytes().await.unwrap().as_ref()), (206, &model.bytes()[1..4]));
    let put = http.put(format!("{}/names/model", server.url())).body("x").send().await.unwrap();
    assert_eq!(put.status().as_u16(), 405);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_hold_up_nobody() {
    let a = content(8 << 20, 1);
    let (origin, model) = with(&[("a", &a)]).await;
    let server = NodeServer::start(LOOPBACK.into(), origin.store.routes()).unwrap();
    let path = origin.store.directory().join("blobs/sha256");
    let name = fs::read_dir(path).unwrap().next().unwrap().unwrap().file_name();
    let mut silent = Vec::new();
    for _ in 0..100 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        let mut stream = socket.connect(server.address()).await.unwrap();
        let request = format!("GET /blobs/sha256/{} HTTP/1.1\r\nhost: x\r\n\r\n", name.display());
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 16]).await.unwrap();
        silent.push(stream);
    }
    let scene = empty();
    in_time("the file", pull(&scene, &model, &[Source::new(&server.url()).unwrap()])).await.unwrap();
    drop(silent);
}

#[tokio::test]
async fn a_source_is_not_believed_about_manifests() {
    let (origin, model) = with(&[("a", b"1")]).await;
    let source = Source::new(&format!("file://{}", origin.store.directory().display())).unwrap();
    let manifest = origin.store.directory().join(format!("manifests/{}.json", hex::encode(model.digest())));
    let text = String::from_utf8(model.bytes().to_vec()).unwrap();
    let name = |name: &str, digest: &str| {
        let path = origin.store.directory().join("names").join(name);
        let _ = fs::remove_file(&path);
        fs::write(path, digest).unwrap();
    };
    name("other", &hex::encode(model.digest()));
    name("nonsense", "nonsense");
    name("endless", &"0".repeat(10_000));
    for (reference, says) in
        [("other", "has model@1 under the name other"), ("nonsense", "is not a digest"), ("endless", "more than 256 bytes")]
    {
        let error = source.model(reference).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    for (changed, says) in [
        (text.replace("\"1\"", "\"2\""), "is another manifest"),
        ("{".into(), "EOF"),
        (" ".repeat((1 << 20) + 1), "more than 1048576 bytes"),
    ] {
        overwrite(&manifest, changed.as_bytes());
        for reference in ["model", &hex::encode(model.digest())] {
            let error = source.model(reference).await.unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}

#[test]
fn urls_that_are_no_sources_say_why() {
    for (url, says) in [
        ("models", "is no URL"),
        ("/srv/models", "is no URL"),
        ("ftp://host/models", "no known kind"),
        ("file://host/models", "no directory of this machine"),
        ("file:///no/such/directory", "No such file"),
        ("http://user:secret@host/", "leave user, password and query out"),
        ("https://host/?token=secret", "leave user, password and query out"),
        (&format!("http://host/{}", "a".repeat(3_000)), "longer than 2048"),
    ] {
        let error = Source::new(url).unwrap_err();
        assert!(error.to_string().contains(says) && error.is_input(), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    for url in ["file:///", "FILE:///tmp", " file:///tmp"] {
        assert!(Source::named_by_others(url).is_err(), "{url}");
    }
}

#[tokio::test]
async fn what_is_pushed_can_be_pulled() {
    let a = content(300_000, 1);
    let (origin, model) = with(&[("a", &a), ("dir/b", b"b")]).await;
    let target = tempfile::tempdir().unwrap();
    let source = Source::new(&format!("file://{}", target.path().display())).unwrap();
    origin.store.push("model", &source, &Progress::default()).await.unwrap();
    origin.store.push("model", &source, &Progress::default()).await.unwrap();
    let scene = empty();
    let found = source.model("model@1").await.unwrap();
    assert_eq!(found.digest(), model.digest());
    pull(&scene, &found, &[source]).await.unwrap();
    assert_eq!(fs::read(scene.store.package("model").await.unwrap().directory.join("a")).unwrap(), a);

    // What is corrupt is not passed on.
    overwrite(&blob(&origin.store, &model, "a"), b"corrupt");
    let other = tempfile::tempdir().unwrap();
    let source = Source::new(&format!("file://{}", other.path().display())).unwrap();
    let error = origin.store.push("model", &source, &Progress::default()).await.unwrap_err();
    assert!(matches!(error, ModelStoreError::Incomplete { .. }), "{error}");
    assert!(files(other.path()).is_empty());
}
