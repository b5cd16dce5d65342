// Asks a model of a devnet, and pays for the answer:
//
//   swift run ... Ask http://127.0.0.1:50051 digits image ../data/7.png
//   swift run ... Ask http://127.0.0.1:50051 smollm2 prompt "The capital of France is"
//
// ncn-bindings/swift/README.md has the whole command.
import Foundation
import NCN

func value(_ given: String) -> Value {
    guard let data = FileManager.default.contents(atPath: given) else { return .text(text: given) }
    let kinds = ["png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg"]
    let kind = kinds[(given as NSString).pathExtension.lowercased()] ?? "application/octet-stream"
    return .file(mediaType: kind, data: data)
}

func ask(gateway: String, model: String, input: String, given: String) async throws {
    let client = try await Client.devnet(gateway: gateway)
    let order = Order(model: model, inputs: [input: value(given)])
    print("at most \(try await client.estimate(order: order).maximum) of \(token) a token")
    for try await event in client.events(order) {
        switch event {
        case .part:
            print(event.text() ?? "", terminator: "")
        case .restarted:
            print("\nanother compute node begins anew")
        case .finished(let answer):
            print()
            for (name, value) in answer.output { print("\(name): \(value.text ?? "no text")") }
            // Anyone can check it, later and elsewhere.
            let receipt = try verifyReceipt(json: answer.receipt.json, network: answer.receipt.network)
            print("paid \(receipt.cost); approved by \(receipt.approvals) validators of network \(receipt.network)")
        }
    }
}

let given = CommandLine.arguments.dropFirst().map { $0 }
guard given.count == 4 else {
    FileHandle.standardError.write(Data("usage: GATEWAY MODEL INPUT TEXT-OR-FILE\n".utf8))
    exit(2)
}
do {
    try await ask(gateway: given[0], model: given[1], input: given[2], given: given[3])
    shutDown(millis: 2_000)
} catch let error as NcnError {
    guard case .Failed(let kind, let reason, _, _) = error else { exit(1) }
    FileHandle.standardError.write(Data("\(kind): \(reason)\n".utf8))
    shutDown(millis: 2_000)
    exit(1)
}
