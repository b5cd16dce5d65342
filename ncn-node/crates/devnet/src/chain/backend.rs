//! The chain as ledgers in the same process reach it.

use alloy_primitives::{Address, B256, Bytes, keccak256};
use async_trait::async_trait;
use ncn_client::evm::{Call, EvmBackend, EvmError, EvmReader, Fees, Head, LogEntry, LogFilter, Nonces, TransactionReceipt};

use super::{
    EmbeddedChain, Request,
    block::{Block, PlacedLog},
    refusal::Refusal,
};

fn request(call: &Call) -> Request {
    Request { from: call.from, to: call.to, input: call.input.clone(), ..Request::default() }
}

fn entry(block: &Block, placed: &PlacedLog<'_>) -> Option<LogEntry> {
    let transaction = *block.transactions.get(placed.transaction)?.tx_hash();
    Some(LogEntry { log: placed.log.clone(), block: block.header.number, transaction })
}

#[async_trait]
impl EvmReader for EmbeddedChain {
    async fn chain_id(&self) -> Result<u64, EvmError> {
        Ok(self.chain_id)
    }

    async fn latest_block(&self) -> Result<Head, EvmError> {
        let core = self.lock();
        Ok(Head { number: core.blocks.head(), timestamp: core.now() })
    }

    async fn block_after(&self, block: u64) -> Result<Head, EvmError> {
        let mut head = self.head.subscribe();
        let newer = head.wait_for(|head| head.number > block).await;
        newer.map(|head| *head).map_err(|error| EvmError::Unreachable(error.to_string()))
    }

    async fn block_hash(&self, block: u64) -> Result<Option<B256>, EvmError> {
        Ok(self.lock().blocks.get(block).map(|block| block.header.hash()))
    }

    async fn call(&self, call: &Call) -> Result<Bytes, EvmError> {
        let next = self.lock().next();
        let result = next.call(&request(call))?;
        Ok(result.into_output().unwrap_or_default())
    }

    async fn transaction_receipt(&self, transaction: B256) -> Result<Option<TransactionReceipt>, EvmError> {
        let core = self.lock();
        let found = core.blocks.transaction(transaction);
        Ok(found.and_then(|(block, index)| {
            let mined = block.mined(index)?;
            let succeeded = mined.receipt.status();
            Some(TransactionReceipt {
                block: block.header.number,
                confirmed: true,
                succeeded,
                gas_used: mined.gas_used,
                created: mined.created.filter(|_| succeeded),
            })
        }))
    }

    async fn logs(&self, filter: LogFilter) -> Result<Vec<LogEntry>, EvmError> {
        let core = self.lock();
        let fits = |placed: &PlacedLog<'_>| {
            let second = filter.topic2.is_none_or(|topic| placed.log.topics().get(2) == Some(&topic));
            placed.log.address == filter.address && second
        };
        let wanted = filter.from_block..=filter.to_block.unwrap_or(u64::MAX);
        let found = match filter.topic1 {
            Some(topic) => {
                let placed = core.blocks.by_topic1(topic);
                let placed = placed.filter(|(block, placed)| wanted.contains(&block.header.number) && fits(placed));
                placed.filter_map(|(block, placed)| entry(block, &placed)).collect()
            }
            None => {
                let blocks = core.blocks.since(filter.from_block).iter();
                let blocks = blocks.take_while(|block| wanted.contains(&block.header.number));
                blocks.flat_map(|block| block.logs().filter(fits).filter_map(|placed| entry(block, &placed))).collect()
            }
        };
        Ok(found)
    }
}

#[async_trait]
impl EvmBackend for EmbeddedChain {
    async fn nonces(&self, account: Address) -> Result<Nonces, EvmError> {
        let core = self.lock();
        let mined = core.state.nonce(account);
        Ok(Nonces { mined, pending: core.mempool.next_nonce(account, mined) })
    }

    async fn estimate(&self, call: &Call) -> Result<u64, EvmError> {
        let next = self.lock().next();
        let result = next.call(&request(call))?;
        // Refunds come after the work: it has to be paid for until then.
        Ok(result.gas().total_gas_spent())
    }

    async fn fees(&self) -> Result<Fees, EvmError> {
        Ok(Fees::default())
    }

    async fn send_raw_transaction(&self, transaction: Bytes) -> Result<(), EvmError> {
        match self.send(&transaction) {
            Ok(_) | Err(Refusal::AlreadyKnown) => Ok(()),
            // It is this one that has the nonce.
            Err(Refusal::NonceTooLow { .. }) if self.mined(keccak256(&transaction)).is_some() => Ok(()),
            Err(refusal) => Err(refusal.into()),
        }
    }
}
