//! `ncn wallet`: keys and tokens.

use std::{io::Write as _, path::PathBuf};

use ncn_client::keystore;
use ncn_core::{Address, Amount};

use crate::{
    Failure,
    account::{ChainArguments, KeyArguments, address, new_password, tokens},
    block_on,
};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a new key and keep it, encrypted, in a file
    New {
        /// The file to write; it must not exist yet
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Show a key's address
    Show {
        #[command(flatten)]
        key: KeyArguments,
    },
    /// Show how many tokens an account has
    Balance {
        #[command(flatten)]
        chain: ChainArguments,
        /// The account
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        account: Address,
    },
    /// Send tokens to an account
    Fund {
        #[command(flatten)]
        chain: ChainArguments,
        #[command(flatten)]
        key: KeyArguments,
        /// Who gets them
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        to: Address,
        /// How many
        #[arg(long, value_name = "TOKENS", value_parser = tokens)]
        amount: Amount,
    },
}

pub(crate) fn run(command: &Command) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    match command {
        Command::New { key } => {
            if key.exists() {
                return Err(Failure::Input(format!("--key {}: is there already: name a new file", key.display())));
            }
            let signer = keystore::create(key, &new_password()?)?;
            Ok(writeln!(out, "{}", signer.address())?)
        }
        Command::Show { key } => Ok(writeln!(out, "{}", key.open()?.address())?),
        Command::Balance { chain, account } => block_on(async {
            // Nothing is signed: any key reads.
            let ledger = chain.ledger(ncn_devnet::well_known_key("reader", 0)).await?;
            Ok(writeln!(out, "{}", ledger.balance(*account).await.map_err(Failure::failed)?)?)
        }),
        Command::Fund { chain, key, to, amount } => block_on(async {
            if amount.is_zero() {
                return Err(Failure::Input("--amount: is zero".into()));
            }
            let ledger = chain.ledger(key.open()?).await?;
            let (own, token) = (ledger.deployment(), ledger.trust_root().await.map_err(Failure::failed)?.token);
            if [Address::ZERO, token, own.payment, own.channels, own.subnets, own.slashing].contains(to) {
                return Err(Failure::Input("--to: is nobody's account: tokens would be lost".into()));
            }
            let transaction = ledger.transfer(*to, *amount).await.map_err(Failure::failed)?;
            Ok(writeln!(out, "sent {amount} to {to}: {transaction}")?)
        }),
    }
}
