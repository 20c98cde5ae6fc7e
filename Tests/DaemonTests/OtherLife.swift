// What JobLife leaves out: a model of several files, an adapter that is brought in, files that are made of it on demand, and
// a model that it is merged into; and starts of the daemon on a store of an earlier release.
import EdgeJobs
import EdgeTestSupport
import EdgeWire
import Foundation
import GRDB
import Testing

struct OtherLife {
    let adapter: [Data]
    var told: (Fact) throws -> Void = { _ in }

    enum Fact { case imported, willDeleteModel, modelDeleted, brought, willDeleteAdapter, adapterDeleted }

    private static let partNames = ["split-00001-of-00002.gguf", "split-00002-of-00002.gguf"]

    func run(_ client: StubbornClient) throws {
        try importModel(client)
        try told(.imported)
        // 409: it was brought in, and the answer was lost on its way.
        _ = try client.add(adapter, to: Endpoint.adapters, accepting: [409]) {
            AdapterImportRequest(name: "brought", baseModel: "tiny", tensors: $0[0], config: $0[1])
        }
        try told(.brought)
        for name in ["adapter.gguf", "adapter_model.safetensors"] {
            let file = try client.call("GET", Endpoint.adapterFile("brought", name), accepting: [200]).body
            try StateAudit.requireWhole(Array(file), name)
        }
        try merge(client)
        try told(.willDeleteAdapter)
        try client.delete(Endpoint.adapter("brought"))
        try told(.adapterDeleted)
        try told(.willDeleteModel)
        try client.delete(Endpoint.model("split"))
        try told(.modelDeleted)
        _ = try client.call("GET", Endpoint.model("split"), accepting: [404])
        _ = try client.call("GET", Endpoint.adapter("brought"), accepting: [404])
    }

    /// Asked for again until it is made and fetched: the next daemon throws it away.
    private func merge(_ client: StubbornClient) throws {
        for _ in 0..<10 {
            let answer = try client.post(Endpoint.mergedModel("brought"), MergeRequest(measure: false), accepting: [200])
            guard answer.text.contains("\"report\"") else { continue }
            let model = try client.call("GET", Endpoint.mergedFile("brought", "model.gguf"), accepting: [200, 404])
            guard model.status == 200 else { continue }
            try StateAudit.requireWhole(Array(model.body), "model.gguf")
            return try client.delete(Endpoint.mergedModel("brought"))
        }
        throw TestFailure("the merge came to nothing:\n\(client.daemon.log.suffix(2000))")
    }

    /// Asked for again whenever it failed.
    private func importModel(_ client: StubbornClient) throws {
        var parts = try SplitModelTests.parts().map { Data($0) }
        // Other bytes than those of the bystanders' model, so that it can be removed.
        guard let title = parts[0].range(of: Data("Tiny random llama".utf8)) else { throw TestFailure("the model has no title") }
        parts[0][title.lowerBound] = UInt8(ascii: "t")
        for _ in 0..<10 {
            _ = try client.add(parts, to: Endpoint.models) { digests in
                ModelRequest(name: "split", files: zip(Self.partNames, digests).map { ModelFile(name: $0, blob: $1) })
            }
            let deadline = Date().addingTimeInterval(60)
            while Date() < deadline {
                let status = try client.get(ModelImportStatus.self, Endpoint.modelImport("split"))
                if status.state == .done { return }
                if status.state == .failed { break }
                try client.meanwhile()
                usleep(10_000)
            }
        }
        throw TestFailure("the import came to nothing:\n\(client.daemon.log.suffix(2000))")
    }
}

enum OldStore {
    /// Rewrites a closed store as a release with the first `count` migrations would have written it.
    static func make(of path: String, migrations count: Int) throws {
        let current = path + ".current"
        try FileManager.default.moveItem(atPath: path, toPath: current)
        var configuration = Configuration()
        configuration.foreignKeysEnabled = false
        let old = try DatabaseQueue(path: path, configuration: configuration)
        try old.writeWithoutTransaction { db in
            try db.execute(sql: "ATTACH ? AS newer", arguments: [current])
            try db.execute(sql: "CREATE TABLE grdb_migrations (identifier TEXT NOT NULL PRIMARY KEY)")
            for migration in JobStore.migrations.prefix(count) {
                try db.execute(sql: migration.sql)
                try db.execute(sql: "INSERT INTO grdb_migrations VALUES (?)", arguments: [migration.name])
            }
            let tables = try String.fetchAll(db, sql: "SELECT name FROM main.sqlite_schema WHERE type = 'table'")
            for table in tables where table != "grdb_migrations" {
                let columns = try db.columns(in: table).map(\.name).joined(separator: ", ")
                try db.execute(sql: "INSERT INTO main.\(table) (\(columns)) SELECT \(columns) FROM newer.\(table)")
            }
            try db.execute(sql: "DETACH newer")
        }
        try old.close()
        try FileManager.default.removeItem(atPath: current)
    }
}
