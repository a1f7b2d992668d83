// SPDX-License-Identifier: Apache-2.0

package nserr

import "google.golang.org/grpc/codes"

// Reasons is the vocabulary in the order of the codes. A code is never reused
// for another meaning.
var Reasons []*Reason

func reason(code string, c codes.Code, summary, fix string, implies ...property) *Reason {
	r := &Reason{Code: code, GRPC: c, Summary: summary, Fix: fix, implies: implies}
	Reasons = append(Reasons, r)
	return r
}

// What is wrong with the message itself (1xxx).
var (
	BadPath       = reason("NSM-1001", codes.InvalidArgument, "malformed path", "send the path of the last reply unchanged, with index and id of your own segment")
	LoopingPath   = reason("NSM-1002", codes.InvalidArgument, "path loops", "a request must not pass the same hop twice; check for a service that requests itself", anyEndpoint)
	SegmentID     = reason("NSM-1003", codes.InvalidArgument, "connection id does not match its path segment", "Connection.id must be the id of the segment at path.index")
	BadRequest    = reason("NSM-1004", codes.InvalidArgument, "malformed request", "send a connection with a network service name")
	BadMechanism  = reason("NSM-1005", codes.InvalidArgument, "mechanism parameters are not valid", "correct the named parameter")
	BadName       = reason("NSM-1006", codes.InvalidArgument, "interface name is not valid", "use 1 to 15 characters without '/', spaces or control characters", anyForwarder)
	NameTaken     = reason("NSM-1007", codes.AlreadyExists, "interface name is taken", "choose another interface name, or leave it out to have one generated", anyForwarder, anyEndpoint)
	NoNetNS       = reason("NSM-1008", codes.FailedPrecondition, "network namespace is gone or not a namespace", "send the open namespace of a running workload", anyForwarder)
	NoDescriptor  = reason("NSM-1009", codes.FailedPrecondition, "file descriptor did not arrive", "send it with SCM_RIGHTS over the same Unix socket connection as the request")
	BadServiceURL = reason("NSM-1010", codes.InvalidArgument, "invalid service URL", "write kernel://SERVICE[@DOMAIN][/INTERFACE][?label=value&...]")
	TooLarge      = reason("NSM-1011", codes.ResourceExhausted, "message is too large", "keep requests under 512 KiB, answers under 4 MiB, and label values short")
	MTUTooSmall   = reason("NSM-1012", codes.InvalidArgument, "MTU is too small", "use at least 1280 for IPv6, 576 for IPv4, after the tunnel's overhead")
	BadContext    = reason("NSM-1013", codes.InvalidArgument, "connection context is not valid", "correct the named address, route or policy", anyForwarder)
	BadEndpoint   = reason("NSM-1014", codes.InvalidArgument, "endpoint registration is not valid", "register a name, at least one network service and a URL")
	BadService    = reason("NSM-1015", codes.InvalidArgument, "network service is not valid", "give it a name, a payload of IP or ETHERNET and well-formed matches")
	BadFlag       = reason("NSM-1016", codes.InvalidArgument, "configuration is not valid", "see --help for the form of the named setting")
	BadSelector   = reason("NSM-1017", codes.InvalidArgument, "label selector is not valid", "write key=value[,key=value...]")
)

// Who asks (2xxx).
var (
	NoToken      = reason("NSM-2001", codes.PermissionDenied, "no token", "send the metadata nsm-client-token and nsm-client-token-expires with every call")
	BadToken     = reason("NSM-2002", codes.PermissionDenied, "token is not valid", "sign it with ES256 and the key of your SVID")
	TokenExpired = reason("NSM-2003", codes.PermissionDenied, "token has expired", "make a new token; if it was new, compare the clocks of the two machines")
	ForeignToken = reason("NSM-2004", codes.PermissionDenied, "token was signed by somebody else", "sign it with the key of the certificate you connect with")
	BrokenChain  = reason("NSM-2005", codes.PermissionDenied, "token chain is broken", "the audience of each token must be the subject of the next")
	WrongOwner   = reason("NSM-2006", codes.PermissionDenied, "connection belongs to another identity", "only the identity that opened a connection may change or close it", anyForwarder, anyEndpoint)
	NameOwned    = reason("NSM-2007", codes.PermissionDenied, "name is owned by another identity", "choose another name, or change it with the identity that registered it; services also as root of the registry's node, or whoever --operators names there")
	NotAllowed   = reason("NSM-2008", codes.PermissionDenied, "not allowed", "ask with an identity that the policy names")
	NoIdentity   = reason("NSM-2009", codes.Unauthenticated, "no identity", "start 'nsm up' or 'nsm authority', or set SPIFFE_ENDPOINT_SOCKET", passes)
	BadJoinToken = reason("NSM-2010", codes.Unauthenticated, "join token is not valid", "make a new one with 'nsm token create'; a token works once, for 15 minutes")
)

// What was asked for (3xxx).
var (
	UnknownService     = reason("NSM-3001", codes.NotFound, "network service is not found", "list services with 'nsm get services', create one with 'nsm apply -f'", passes, anyForwarder)
	NoEndpoint         = reason("NSM-3002", codes.NotFound, "no endpoint is registered", "start one with 'nsm serve', and see 'nsm get endpoints'", passes, anyForwarder)
	NoMatch            = reason("NSM-3003", codes.NotFound, "no endpoint matches the labels", "compare the labels of the request with 'nsm get service -o yaml' and 'nsm get endpoints -o wide'", passes, anyForwarder)
	EndpointsFailed    = reason("NSM-3004", codes.Unavailable, "all endpoints have failed", "see the cause given for each endpoint", passes)
	NoForwarder        = reason("NSM-3005", codes.Unavailable, "no forwarder", "start 'nsm forwarder' on this node, and see 'nsm get nodes'", passes)
	ForwardersFailed   = reason("NSM-3006", codes.Unavailable, "all forwarders have failed", "see the cause given for each forwarder", passes)
	Unsupported        = reason("NSM-3007", codes.Unimplemented, "mechanism is not supported", "offer KERNEL locally, VXLAN (payload ETHERNET), WIREGUARD (payload IP) or TUNNEL (either) across nodes")
	UnknownEndpoint    = reason("NSM-3008", codes.NotFound, "endpoint is not found", "leave network_service_endpoint_name empty to have one chosen", passes, anyForwarder)
	UnknownWire        = reason("NSM-3009", codes.NotFound, "wire is not found", "list wires with 'nsm get wires'")
	AddressesExhausted = reason("NSM-3010", codes.ResourceExhausted, "address pool is exhausted", "give the endpoint a larger --cidr", passes)
	AddressesExcluded  = reason("NSM-3011", codes.FailedPrecondition, "address pool clashes with excluded prefixes", "give the endpoint a --cidr outside the excluded prefixes", anyForwarder)
	BadAnswer          = reason("NSM-3012", codes.Internal, "next hop answered nonsense", "see the log of the named hop; it is at fault")
	ForwarderGone      = reason("NSM-3013", codes.Unavailable, "forwarder is not available", "request again with state RESELECT_REQUESTED", passes)
	PayloadMismatch    = reason("NSM-3014", codes.FailedPrecondition, "payload does not fit", "across nodes IP needs WIREGUARD, ETHERNET needs VXLAN, or either TUNNEL")
	UnknownNode        = reason("NSM-3015", codes.NotFound, "node is not found", "list nodes with 'nsm get nodes'")
	EndpointGone       = reason("NSM-3016", codes.Unavailable, "endpoint does not answer", "see whether its process runs; clients move to another endpoint of the service if there is one", passes)
	NameInUse          = reason("NSM-3017", codes.AlreadyExists, "endpoint of this name runs already", "give one of the two another name: nsm serve --name NAME")
	Draining           = reason("NSM-3018", codes.Unavailable, "endpoint is being drained", "name no endpoint to have another one chosen, or take the drain back: nsm drain endpoint NAME --undo", passes)
	NoPackets          = reason("NSM-3019", codes.Unavailable, "no packets come back through the wire", "see with 'nsm describe wire' whether all is as it should be, and whether a tunnel carries it: UDP must pass between the two nodes, in both directions, at its addresses and ports; if it does, see whether the workload of the endpoint answers", passes)
	NotEncrypted       = reason("NSM-3020", codes.FailedPrecondition, "wire would not be encrypted", "give both nodes a forwarder that has the tunnel, with --wireguard=userspace and --wireguard-tunnel=auto or required; or take payload IP; or allow VXLAN in the clear with --wireguard-tunnel=auto at the forwarder that refuses")
)

// What this machine could not do (4xxx).
var (
	Internal      = reason("NSM-4001", codes.Internal, "internal error", "this is a defect; please report it with the log")
	KernelFailed  = reason("NSM-4002", codes.Internal, "the kernel refused", "see the failed command; check privileges (CAP_NET_ADMIN) and kernel features")
	PeerDown      = reason("NSM-4003", codes.Unavailable, "peer is not reachable", "check that it runs and that its address is right", passes, unanswered)
	TimedOut      = reason("NSM-4004", codes.DeadlineExceeded, "took too long", "try again; see which hop is slow with 'nsm describe wire'", passes, unanswered)
	Busy          = reason("NSM-4005", codes.ResourceExhausted, "too much load", "try again later, as nsm connect --wait does by itself; 'nsm profile' of the hop that says so shows what it does meanwhile", passes)
	Stopping      = reason("NSM-4006", codes.Unavailable, "shutting down", "try again, or ask another instance", passes, unanswered)
	StateDir      = reason("NSM-4007", codes.FailedPrecondition, "state directory cannot be used", "check that it exists, is writable and not full")
	AddressInUse  = reason("NSM-4008", codes.FailedPrecondition, "address is in use", "stop the other process or choose another --listen-on")
	WatchLost     = reason("NSM-4009", codes.Aborted, "watch fell too far behind", "watch again; the current state is sent first")
	NotPrivileged = reason("NSM-4010", codes.PermissionDenied, "not privileged", "run as root or with CAP_NET_ADMIN and CAP_SYS_ADMIN", anyEndpoint)
)
