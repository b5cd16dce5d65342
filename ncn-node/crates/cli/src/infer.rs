//! `ncn infer`: one request to any gateway.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use ncn_client::{
    ChannelPayer, Client, ClientError, InferenceEvent, InferenceOutput, Order, Paid, PayerChannel, RelayedPayer, devnet,
    evm::EvmLedger,
};
use ncn_core::{B256, DynSigner, Payer, Receipt, Transport, TrustRoot, receipt::Payment};
use serde_json::json;

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments, gateway},
    block_on,
    fetch::witness,
    files::ReceiptFile,
    inputs::{InputArguments, ParsedInputs},
    network::is_pinned,
    output::{OutputArguments, Written, print_output},
    price::PriceArguments,
    sanitize, say,
    stream::Stream,
    unfinished::{Means, Request, Unfinished},
    verify::usage,
};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The gateway
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:50051")]
    gateway: String,
    #[command(flatten)]
    key: KeyArguments,
    #[command(flatten)]
    chain: ChainArguments,
    /// Use no chain: pay by a signature that the gateway brings to it
    #[arg(long, conflicts_with = "channel")]
    relayed: bool,
    /// Use no chain: pay out of the channel in this file, as `ncn channel open` wrote it
    #[arg(long, value_name = "FILE")]
    channel: Option<PathBuf>,
    /// The hash of the network to trust, where no chain says it, or with a chain that of its contracts: `ncn network` shows both
    #[arg(long, value_name = "HASH")]
    network: Option<B256>,
    /// The model's name
    #[arg(long, value_name = "NAME")]
    model: String,
    #[command(flatten)]
    inputs: InputArguments,
    /// The model's parameters, as a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    parameters: String,
    #[command(flatten)]
    price: PriceArguments,
    /// How long to wait for the answer, in seconds; by default a minute, and longer where the model may need it
    #[arg(long, alias = "patience", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=86_400))]
    timeout: Option<u64>,
    /// Where to write the receipt
    #[arg(long, value_name = "PATH", default_value = "ncn-receipt.json")]
    receipt: PathBuf,
    #[command(flatten)]
    output: OutputArguments,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let given = arguments.inputs.read()?;
    let target = ReceiptFile::prepare(&arguments.receipt, given.paths())?;
    let output = arguments.output.prepare()?;
    let signer = arguments.key.open()?;
    block_on(async {
        let (answer, unfinished) = Box::pin(infer(arguments, given, signer)).await?;
        let written = output.map(|output| output.write(&answer.output)).transpose()?;
        target.write(&answer.receipt)?;
        print(arguments.json, &arguments.receipt, &answer, written)?;
        // What was not written or shown can be fetched again until here.
        unfinished.over();
        Ok(())
    })
}

async fn infer(arguments: &Arguments, given: ParsedInputs, signer: DynSigner) -> Result<(InferenceOutput, Unfinished), Failure> {
    let transport = gateway(&arguments.gateway)?;
    let payer = payer(arguments, &transport, &signer).await?;
    let client = Client::builder().transport(transport).payer(payer).signer(signer).build()?;
    let inputs = given.inputs(&client.model(&arguments.model).await?.model)?;
    let mut order = Order::new(&arguments.model, inputs).parameters(&arguments.parameters);
    if let Some(seconds) = arguments.timeout {
        order = order.timeout(Duration::from_secs(seconds));
    }
    let limit = arguments.price.agree(&arguments.model, &client.estimate(&order).await?).await?;
    let mut stream = Stream::new(arguments.json);
    stream.wait("a quote, and the validators' approval of it");
    let quoted = client.submit(order.max_price(limit)).await?;
    let request = Request { gateway: arguments.gateway.clone(), means: means(arguments), stored: quoted.stored() };
    let mut unfinished = Unfinished::keep(&arguments.receipt, request, &arguments.key, &arguments.chain)?;
    stream.wait(&format!("the payment of at most {}", quoted.quote().total));
    let answer = match quoted.pay().await {
        Ok(paid) => {
            unfinished.paid(paid.stored());
            finish(paid, &mut stream).await
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) => Ok((answer, unfinished)),
        Err(error) => {
            if !error.is_paid() {
                unfinished.over();
            }
            Err(error.into())
        }
    }
}

fn means(arguments: &Arguments) -> Means {
    match &arguments.channel {
        Some(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            Means::Channel(path.to_string_lossy().into_owned())
        }
        None if arguments.relayed || !arguments.chain.is_given() => Means::Relayed,
        None => Means::Transaction,
    }
}

/// Follows a request to its end, and shows what is streamed. A verified answer is one, whatever was streamed before it.
pub(crate) async fn finish(paid: Paid, stream: &mut Stream) -> Result<InferenceOutput, ClientError> {
    stream.wait("the answer, and the validators' approval of it");
    // Who interrupts the program is told how to go on.
    let mut events = paid.events().resumable();
    let ended = loop {
        match events.next().await {
            Some(Ok(InferenceEvent::Finished(answer))) => break Ok(*answer),
            Some(Ok(event)) => stream.show(&event),
            Some(Err(error)) => break Err(error),
            None => break Err(ClientError::NotRefunded("the request has no end".into())),
        }
    };
    stream.end();
    match ended {
        Err(ClientError::PartsRejected { problem, answer }) => {
            say(&sanitize(&format!("what was streamed is not the output and void ({problem}); the verified output follows")));
            Ok(*answer)
        }
        ended => ended,
    }
}

/// How the request is paid.
async fn payer(arguments: &Arguments, transport: &Arc<dyn Transport>, signer: &DynSigner) -> Result<Arc<dyn Payer>, Failure> {
    if arguments.chain.is_given() && !arguments.relayed && arguments.channel.is_none() {
        return on_chain(&arguments.chain, arguments.network, &**transport, signer).await;
    }
    let channel = match &arguments.channel {
        Some(path) => Some(super::channel::open_file(path)?),
        None if arguments.relayed => None,
        None => return Err(Failure::Input("give --rpc URL to pay on the chain, or --relayed, or --channel FILE".into())),
    };
    let trust = trusted(arguments.network, arguments.chain.is_given(), &**transport).await?;
    let chain = witness(&arguments.chain, signer, &trust).await;
    match &chain {
        // A pin of all of it has said who the validators are.
        _ if arguments.network == Some(trust.hash()) => {}
        Some(chain) => {
            let (stated, known) = (trust.hash(), chain.trust_root().await.map_err(Failure::failed)?.hash());
            if stated != known {
                let problem = format!("the gateway states network {stated}, the chain has {known}: nothing was signed");
                return Err(Failure::Failed(problem));
            }
        }
        None if arguments.network.is_some() => {
            return Err(Failure::Failed("no chain has said who the validators are: nothing was signed".into()));
        }
        None => {}
    }
    let Some(channel) = channel else { return Ok(Arc::new(relayed_payer(transport, trust, signer, chain))) };
    if channel.terms().client != signer.address() {
        let (owner, key) = (channel.terms().client, signer.address());
        return Err(Failure::Input(format!("--key: is the key of {key}, the channel is {owner}'s")));
    }
    let payer = channel_payer(transport, trust, signer, channel.clone(), chain);
    reconcile(&payer, &channel).await;
    Ok(Arc::new(payer))
}

/// Pays by a signature; a chain proves what becomes of it.
pub(crate) fn relayed_payer(
    transport: &Arc<dyn Transport>,
    trust: TrustRoot,
    signer: &DynSigner,
    chain: Option<Arc<EvmLedger>>,
) -> RelayedPayer {
    RelayedPayer::new(transport.clone(), trust, signer.clone()).with_chain(chain.map(|chain| chain as _))
}

/// Pays out of a channel; a chain shows what that was charged.
pub(crate) fn channel_payer(
    transport: &Arc<dyn Transport>,
    trust: TrustRoot,
    signer: &DynSigner,
    channel: Arc<PayerChannel>,
    chain: Option<Arc<EvmLedger>>,
) -> ChannelPayer {
    ChannelPayer::new(transport.clone(), trust, signer.clone(), channel).with_chain(chain.map(|chain| chain as _))
}

/// A payer on the chain, when the chain has the network that is trusted, and the gateway is of it: by other contracts, no signature would be right.
pub(crate) async fn on_chain(
    chain: &ChainArguments,
    network: Option<B256>,
    transport: &dyn Transport,
    signer: &DynSigner,
) -> Result<Arc<dyn Payer>, Failure> {
    let ledger = chain.ledger(signer.clone()).await?;
    // A gateway that does not answer is found out by what comes next.
    if let Ok(stated) = transport.network().await.map(|info| info.trust_root)
        && !ledger.is_of(&stated)
    {
        let (here, there) = (ledger.deployment().payment, stated.domain.contract);
        let problem =
            format!("pays into {here}, and the gateway is of the network that pays into {there}: give that one's contracts");
        return Err(Failure::Input(format!("--contracts: {problem}; nothing was signed")));
    }
    let known = ledger.trust_root().await.map_err(Failure::failed)?;
    if let Some(expected) = network.filter(|expected| !is_pinned(*expected, true, &known)) {
        return Err(Failure::Failed(format!("the chain has network {}, not {expected}: nothing was signed", known.hash())));
    }
    Ok(Arc::new(ledger))
}

/// The network that the gateway states, when there is reason to believe it: its hash was given, or it is a development network, whose
/// contracts everybody knows.
pub(crate) async fn trusted(network: Option<B256>, by_chain: bool, transport: &dyn Transport) -> Result<TrustRoot, Failure> {
    let stated = transport.network().await.map_err(Failure::failed)?.trust_root;
    stated.validate().map_err(|error| Failure::Failed(format!("the gateway's network: {error}")))?;
    let hash = stated.hash();
    match network {
        Some(expected) if !is_pinned(expected, by_chain, &stated) && expected == stated.contracts_hash() => Err(Failure::Input(
            "--network: pins the contracts, and only their chain says who the validators are: add --rpc, or pin the hash of all of it".into(),
        )),
        Some(expected) if !is_pinned(expected, by_chain, &stated) => {
            Err(Failure::Failed(format!("the gateway is of network {hash}, not of {expected}: nothing was signed")))
        }
        Some(_) => Ok(stated),
        None if devnet::is_network(&stated) => {
            say(&format!("network: a development network, as the gateway states it (pin it: --network {hash})"));
            Ok(stated)
        }
        None => Err(Failure::Input(format!(
            "--network is missing: without a chain you have to say which network you trust; the gateway states {hash}"
        ))),
    }
}

/// Takes in what the chain has charged the channel, and says which requests of earlier runs have no proven end.
async fn reconcile(payer: &ChannelPayer, channel: &PayerChannel) {
    if let Err(error) = payer.reconcile().await {
        say(&sanitize(&format!("--channel: cannot see what the chain has charged it: {error}")));
    }
    let reserved = channel.sums().reserved;
    if !reserved.is_zero() {
        say(&format!("--channel: {reserved} are reserved for requests without a proven end; `ncn fetch` asks for their answers"));
    }
}

/// Prints an answer whose receipt has been written, and its values where they were wanted.
pub(crate) fn print(json: bool, path: &Path, answer: &InferenceOutput, written: Option<Written>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let receipt: &Receipt = &answer.receipt;
    if json {
        let all = json!({
            "request": receipt.request_id(),
            // What is in files is not repeated: it may be large.
            "output": written.is_none().then(|| answer.output.to_json()),
            "files": written,
            "payment": receipt.payment,
            "payments": receipt.payments.payouts,
            "usage": answer.usage(),
            "price": answer.price(),
            "cost": answer.cost(),
            "total": receipt.quote.total,
            "finish": answer.finish(),
            "receipt": path.to_string_lossy(),
        });
        return Ok(writeln!(out, "{all:#}")?);
    }
    writeln!(out, "request {}\n\nresult", receipt.request_id())?;
    print_output(&mut out, &answer.output, &written.unwrap_or_default())?;
    let how = match &receipt.payment {
        Payment::Escrow { transaction, .. } => format!("by {transaction}"),
        Payment::Channel(payment) => format!("out of channel {}", payment.voucher.channel),
    };
    if !answer.finish().is_whole() {
        writeln!(out, "\nthe output was cut short: {}", answer.finish())?;
    }
    let most = if answer.price().is_flat() {
        String::new()
    } else {
        format!(" for {}, of at most {},", usage(receipt), receipt.quote.total)
    };
    writeln!(out, "\npaid {}{most} {how}", answer.cost())?;
    writeln!(out, "receipt {0} (check it: ncn verify {0})", sanitize(&path.display().to_string()))?;
    Ok(())
}
