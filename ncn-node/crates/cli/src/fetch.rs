//! `ncn fetch`: the answer of a request whose program has ended.

use std::{
    iter,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ncn_client::{Client, ClientError, InferenceOutput, PayerChannel, evm::EvmLedger};
use ncn_core::{B256, DynSigner, Payer, TrustRoot};

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments, gateway},
    block_on,
    files::ReceiptFile,
    infer::{channel_payer, finish, print, relayed_payer},
    output::OutputArguments,
    sanitize, say,
    stream::Stream,
    unfinished::{self, Kept, Means, RECEIPT, Request},
};

/// How long is waited for a chain that is only to witness what others do.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The request's id, or its file, FILE.unfinished; not needed where there is one such file
    #[arg(value_name = "REQUEST")]
    request: Option<PathBuf>,
    /// The receipt that `ncn infer` was to write: the request's file lies beside it
    #[arg(long, value_name = "PATH")]
    receipt: Option<PathBuf>,
    /// The gateway, where it is not at the URL any more that the request was sent to
    #[arg(long, value_name = "URL")]
    gateway: Option<String>,
    /// The channel that paid, where its file is not in its place any more
    #[arg(long, value_name = "FILE")]
    channel: Option<PathBuf>,
    #[command(flatten)]
    key: KeyArguments,
    #[command(flatten)]
    chain: ChainArguments,
    #[command(flatten)]
    output: OutputArguments,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (path, request) = find(arguments)?;
    ReceiptFile::prepare(&receipt(arguments, &path, &request), iter::empty())?;
    let output = arguments.output.prepare()?;
    let signer = arguments.key.open()?;
    block_on(async {
        let answer = fetch(arguments, &path, &request, signer).await?;
        let written = output.map(|output| output.write(&answer.output)).transpose()?;
        // Anew: a later request may have written its receipt in the meantime.
        let receipt = receipt(arguments, &path, &request);
        ReceiptFile::prepare(&receipt, iter::empty())?.write(&answer.receipt)?;
        print(arguments.json, &receipt, &answer, written)?;
        unfinished::end(&path);
        Ok(())
    })
}

/// The request that is meant, and its file.
fn find(arguments: &Arguments) -> Result<(PathBuf, Request), Failure> {
    let named = arguments.request.as_deref();
    let id: Option<B256> = named.and_then(Path::to_str).and_then(|text| text.parse().ok());
    if let (Some(path), None) = (named, id) {
        return match unfinished::read(path)? {
            Kept::Request(request) => Ok((path.to_owned(), request)),
            Kept::Quote(_) => {
                let problem =
                    "holds a quote only, of an earlier version: `ncn refund` takes its payment back, if it was not served";
                Err(Failure::Input(format!("{}: {problem}", path.display())))
            }
        };
    }
    let beside = arguments.receipt.as_deref().unwrap_or(Path::new(RECEIPT));
    let all = unfinished::beside(beside)?;
    let list: Vec<_> = all
        .iter()
        .map(|(path, request)| format!("{} at {} ({})", request.stored.request_id(), request.gateway, path.display()))
        .collect();
    let list = if list.is_empty() { "there is none".to_owned() } else { format!("there are: {}", list.join(", ")) };
    let mut meant: Vec<_> = all.into_iter().filter(|(_, request)| id.is_none_or(|id| id == request.stored.request_id())).collect();
    let found = meant.pop();
    match (found, id) {
        (Some(found), _) if id.is_some() || meant.is_empty() => Ok(found),
        (Some(_), _) => Err(Failure::Input(format!("several requests are unfinished: name one; {list}"))),
        (None, Some(id)) => Err(Failure::Input(format!(
            "request {id} has no file beside {}: name the file, or the --receipt that it was asked with (a delivered request leaves \
             no file behind); {list}",
            beside.display()
        ))),
        (None, None) => Err(Failure::Input(format!(
            "no request is unfinished beside {}: name its file, or the --receipt that it was asked with",
            beside.display()
        ))),
    }
}

/// Where the receipt goes: never over that of a later request.
fn receipt(arguments: &Arguments, path: &Path, request: &Request) -> PathBuf {
    let id = request.stored.request_id();
    let named = arguments.receipt.clone().unwrap_or_else(|| unfinished::receipt_of(path, id));
    if arguments.receipt.is_none() && named.exists() { named.with_extension(format!("{id}.json")) } else { named }
}

async fn fetch(arguments: &Arguments, path: &Path, request: &Request, signer: DynSigner) -> Result<InferenceOutput, Failure> {
    let stored = &request.stored;
    let url = arguments.gateway.as_ref().unwrap_or(&request.gateway);
    let transport = gateway(url)?;
    match transport.network().await {
        Ok(info) if info.gateway != stored.quote.gateway => {
            let (here, wanted) = (info.gateway, stored.quote.gateway);
            return Err(Failure::Input(format!(
                "--gateway: at {url} is {here}, the request is with {wanted}: give that one's URL"
            )));
        }
        Ok(_) => {}
        // The chain may say how it ended.
        Err(error) => say(&sanitize(&error.to_string())),
    }
    let chain = witness(&arguments.chain, &signer, &stored.trust_root).await;
    let channel = match &request.means {
        Means::Channel(file) => Some(super::channel::open_file(arguments.channel.as_deref().unwrap_or(Path::new(file)))?),
        _ => None,
    };
    let trust = stored.trust_root.clone();
    let payer: Arc<dyn Payer> = match channel.clone() {
        Some(channel) => Arc::new(channel_payer(&transport, trust, &signer, channel, chain.clone())),
        None => Arc::new(relayed_payer(&transport, trust, &signer, chain.clone())),
    };
    let client = Client::builder().transport(transport).payer(payer).signer(signer).build()?;
    let paid = client.resume(stored.clone()).await.map_err(|error| Failure::Input(format!("{}: {error}", path.display())))?;
    let mut stream = Stream::new(arguments.json);
    let error = match finish(paid, &mut stream).await {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    drop(stream);
    Err(ended(path, request, &error, channel.as_deref(), chain.as_deref()).await)
}

/// Whether nothing can come of a request any more. That a channel has nothing `reserved` for it may mean that it was charged.
const fn is_over(error: &ClientError, reserved: bool) -> bool {
    !error.is_paid() && !reserved
}

/// Why there is no answer, and what the chain says of the money. The file goes when that is proven, and stays otherwise.
async fn ended(
    path: &Path,
    request: &Request,
    error: &ClientError,
    channel: Option<&PayerChannel>,
    chain: Option<&EvmLedger>,
) -> Failure {
    let quote = &request.stored.quote;
    if is_over(error, channel.is_some_and(|channel| channel.holds(quote.request_id))) {
        unfinished::end(path);
        return Failure::failed(error);
    }
    let says = match (channel, chain) {
        (_, None) => "with --rpc URL, the chain is asked what became of the payment".to_owned(),
        (Some(channel), Some(_)) if channel.holds(quote.request_id) => {
            "what it may cost stays reserved in the channel until that is charged or closed".to_owned()
        }
        (Some(_), _) => {
            "nothing is reserved for it in the channel any more: the channel was charged for it, or has ended".to_owned()
        }
        (None, Some(chain)) => match chain.payment(quote.client, quote.request_id).await {
            Ok(status) => format!("the chain says that it is {status}"),
            Err(error) => format!("the chain does not say what became of the payment: {error}"),
        },
    };
    Failure::Failed(format!("{error}; {says}; {} stays", path.display()))
}

/// The chain, where one is given that is of this network, to see what becomes of a payment that the gateway brings there. Without it
/// the request goes on all the same.
pub(crate) async fn witness(arguments: &ChainArguments, signer: &DynSigner, trust: &TrustRoot) -> Option<Arc<EvmLedger>> {
    if !arguments.is_given() {
        return None;
    }
    let asking = async {
        let ledger = arguments.ledger(signer.clone()).await.map_err(Failure::problem)?;
        let known = ledger.trust_root().await.map_err(|error| error.to_string())?;
        // The validators may have changed; the contracts do not.
        let same = (known.domain, known.channels) == (trust.domain, trust.channels);
        if same { Ok(ledger) } else { Err("--rpc: is the chain of another network".to_owned()) }
    };
    let late = |_| Err(format!("--rpc: no answer within {WITNESS_TIMEOUT:?}"));
    match tokio::time::timeout(WITNESS_TIMEOUT, asking).await.unwrap_or_else(late) {
        Ok(ledger) => Some(Arc::new(ledger)),
        Err(problem) => {
            say(&sanitize(&format!("the chain is not asked what becomes of the payment: {problem}")));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_over_when_its_money_is_free_and_not_before() {
        let (unpaid, unknown) = (ClientError::Refused("no".into()), ClientError::NotRefunded("the gateway is not reached".into()));
        assert!(is_over(&unpaid, false));
        assert!(!is_over(&unpaid, true), "its amount is reserved");
        assert!(!is_over(&unknown, false), "the channel may have been charged");
        assert!(!is_over(&unknown, true));
    }
}
