//! No price is paid unseen: what a library's caller has to limit, or to look at.

use ncn_core::{Amount, LedgerError, PaymentLedger as _};

use crate::scene::{Chain, key, tokens};

#[tokio::test]
async fn a_subnet_s_fee_is_bounded_by_its_owner() {
    let chain = Chain::new(3).await;
    let owner = key();
    chain.deployer.transfer(owner.address(), tokens(100)).await.unwrap();
    let account = chain.deployer.with_signer(owner.clone());
    assert_eq!(account.subnet_fee("mine").await.unwrap(), tokens(10));
    let refused = account.create_subnet("mine", Amount::TOKEN).await.unwrap_err();
    assert!(matches!(&refused, LedgerError::NotAllowed(problem) if problem.contains("costs 10 NCN")), "{refused}");
    assert_eq!(account.balance(owner.address()).await.unwrap(), tokens(100));
    account.create_subnet("mine", tokens(10)).await.unwrap();
    assert_eq!(account.balance(owner.address()).await.unwrap(), tokens(90));
    assert_eq!(account.subnet_fee("mine").await.unwrap(), Amount::ZERO, "it is created already");
}
