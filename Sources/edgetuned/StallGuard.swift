// Closes a connection on which too little moves: a head that does not come, a body that trickles, an answer that is not taken.
// What the daemon itself is slow to read is not held against the client.
import HTTPTypes
import NIOCore
import NIOHTTPTypes

/// How long a client may take.
struct ClientPatience: Sendable {
    /// For a whole head, from the connection's or the last answer's end.
    var head: TimeAmount = .seconds(30)
    /// In which `leastBytes` of a body have to come.
    var window: TimeAmount = .seconds(30)
    var leastBytes = 4096
    /// For a piece of an answer: of a file 256 KiB, of events a page, a log whole.
    var answer: TimeAmount = .seconds(60)
}

/// Sits between the HTTP codec and Hummingbird, on the connection's event loop.
final class StallGuard: ChannelDuplexHandler, RemovableChannelHandler {
    typealias InboundIn = HTTPRequestPart
    typealias InboundOut = HTTPRequestPart
    typealias OutboundIn = HTTPResponsePart
    typealias OutboundOut = HTTPResponsePart

    /// What admission wants to know.
    enum Phase: Sendable { case began, ended }

    private let patience: ClientPatience
    private let report: @Sendable (Phase) -> Void
    private var tick: Scheduled<Void>?

    private var answersDue = 0
    private var isInBody = false
    /// The end of a body is due, or the next head.
    private var waitsSince = NIODeadline.now()
    private var windowBegan = NIODeadline.now()
    private var windowBytes = 0
    /// Of the window, the time in which the daemon asked for no bytes.
    private var withheld = TimeAmount.zero
    private var withheldSince: NIODeadline?
    private var writesOpen = 0
    private var lastTaken = NIODeadline.now()

    init(_ patience: ClientPatience, report: @escaping @Sendable (Phase) -> Void) {
        self.patience = patience
        self.report = report
    }

    func handlerAdded(context: ChannelHandlerContext) { schedule(context) }
    func handlerRemoved(context: ChannelHandlerContext) { tick?.cancel() }

    func channelInactive(context: ChannelHandlerContext) {
        tick?.cancel()
        context.fireChannelInactive()
    }

    func read(context: ChannelHandlerContext) {
        if let since = withheldSince { withheld = withheld + (.now() - since) }
        withheldSince = nil
        context.read()
    }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        switch unwrapInboundIn(data) {
        case .head:
            if answersDue == 0 { report(.began) }
            answersDue += 1
            isInBody = true
            beginWindow()
        case .body(let bytes): windowBytes += bytes.readableBytes
        case .end:
            isInBody = false
            waitsSince = .now()
        }
        context.fireChannelRead(data)
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        // Asked for more at once, unless the request's reader has enough.
        withheldSince = .now()
        context.fireChannelReadComplete()
    }

    func write(context: ChannelHandlerContext, data: NIOAny, promise: EventLoopPromise<Void>?) {
        if writesOpen == 0 { lastTaken = .now() }
        writesOpen += 1
        if case .end = unwrapOutboundIn(data) {
            answersDue -= 1
            waitsSince = .now()
            if answersDue == 0 { report(.ended) }
        }
        let taken = promise ?? context.eventLoop.makePromise()
        // On this event loop, as all of this handler.
        taken.futureResult.assumeIsolated().whenComplete { [self] _ in
            writesOpen -= 1
            lastTaken = .now()
        }
        context.write(data, promise: taken)
    }

    private func beginWindow() {
        windowBegan = .now()
        windowBytes = 0
        withheld = .zero
        if withheldSince != nil { withheldSince = .now() }
    }

    private func schedule(_ context: ChannelHandlerContext) {
        let interval = TimeAmount.nanoseconds(min(patience.head, patience.window, patience.answer).nanoseconds / 4)
        tick = context.eventLoop.assumeIsolated().scheduleTask(in: interval) { [self] in
            if isStalled(at: .now()) {
                context.close(promise: nil)
            } else {
                schedule(context)
            }
        }
    }

    private func isStalled(at now: NIODeadline) -> Bool {
        if writesOpen > 0 { return now - lastTaken > patience.answer }
        if isInBody {
            // An answer before the body's end is a refusal: then the client has no reason to go on for long.
            if answersDue == 0, now - waitsSince > patience.head { return true }
            let idle = withheld + (withheldSince.map { now - $0 } ?? .zero)
            guard now - windowBegan - idle > patience.window else { return false }
            if windowBytes < patience.leastBytes { return true }
            beginWindow()
            return false
        }
        return answersDue == 0 && now - waitsSince > patience.head
    }
}
