import Foundation
import NCN
import XCTest

/// The repository, above this file.
func repository(_ path: String) -> URL {
    var root = URL(fileURLWithPath: #filePath)
    for _ in 0..<5 { root.deleteLastPathComponent() }
    return root.appendingPathComponent(path)
}

final class ReceiptTests: XCTestCase {
    /// A receipt's own text, since numbers of 64 bits do not survive every reader of JSON.
    private func receipt(of line: Substring) -> String? {
        guard let start = line.range(of: "\"receipt\":"), let end = line.lastIndex(of: "}") else { return nil }
        return String(line[start.upperBound..<end])
    }

    func testEveryReceiptIsWhatTheVectorsSay() throws {
        let vectors = try String(contentsOf: repository("docs/receipts.jsonl"), encoding: .utf8).split(separator: "\n")
        XCTAssertGreaterThan(vectors.count, 50)
        for line in vectors {
            let json = try XCTUnwrap(receipt(of: line))
            let isValid = line.contains("\"valid\":true")
            XCTAssertEqual((try? verifyReceipt(json: json)) != nil, isValid, String(line.prefix(200)))
        }
    }

    func testAReceiptIsOfTheNetworkThatIsTrusted() throws {
        let json = try String(contentsOf: repository("docs/receipt.json"), encoding: .utf8)
        let verified = try verifyReceipt(json: json)
        XCTAssertEqual(try verifyReceipt(json: json, network: verified.network), verified)
        let other = "0x" + String(repeating: "07", count: 32)
        XCTAssertThrowsError(try verifyReceipt(json: json, network: other)) { error in
            XCTAssertEqual((error as? NcnError)?.kind, .receiptRejected)
        }
    }
}
