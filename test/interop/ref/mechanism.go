// SPDX-License-Identifier: Apache-2.0

package ref

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"maps"
	"net"
	"sync"

	"github.com/golang/protobuf/ptypes/empty"
	"github.com/networkservicemesh/api/pkg/api/networkservice"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/cls"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/common"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/kernel"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/vxlan"
	"github.com/networkservicemesh/api/pkg/api/networkservice/mechanisms/wireguard"
	"github.com/networkservicemesh/api/pkg/api/networkservice/payload"
	kernelmech "github.com/networkservicemesh/sdk/pkg/networkservice/common/mechanisms/kernel"
	"github.com/networkservicemesh/sdk/pkg/networkservice/core/next"
	"github.com/networkservicemesh/sdk/pkg/tools/clienturlctx"
	"google.golang.org/grpc"
)

const (
	ownNetNS      = "file:///proc/thread-self/ns/net"
	wireguardPort = "51820"
)

// nextHopMechanism writes the forwarder's preferences for its right-hand side:
// what forwarder-vpp's mechanism clients and its filter by URL scheme leave over.
type nextHopMechanism struct {
	tunnelIP net.IP
	offer    map[string]string
	keys     sync.Map // of WireGuard, by connection id: a refresh has the same
}

func (n *nextHopMechanism) Request(ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption) (*networkservice.Connection, error) {
	conn := request.GetConnection()
	preference := &networkservice.Mechanism{Cls: cls.REMOTE, Type: vxlan.MECHANISM, Parameters: maps.Clone(n.offer)}
	if preference.Parameters == nil {
		preference.Parameters = make(map[string]string)
	}
	switch u := clienturlctx.ClientURL(ctx); {
	case u != nil && (u.Scheme == "unix" || u.Scheme == "inode"):
		preference = kernel.New(ownNetNS)
		preference.Parameters[common.InterfaceNameKey] = "nsm-fwd"
	case conn.GetPayload() != payload.Ethernet:
		fresh, err := publicKey()
		if err != nil {
			return nil, err
		}
		key, _ := n.keys.LoadOrStore(conn.GetId(), fresh)
		preference.Type = wireguard.MECHANISM
		preference.Parameters[wireguard.SrcIP] = n.tunnelIP.String()
		preference.Parameters[wireguard.SrcPort] = wireguardPort
		preference.Parameters[wireguard.SrcPublicKey] = key.(string)
	}
	request.MechanismPreferences = append(request.GetMechanismPreferences(), preference)
	return next.Client(ctx).Request(ctx, request, opts...)
}

func (n *nextHopMechanism) Close(ctx context.Context, conn *networkservice.Connection, opts ...grpc.CallOption) (*empty.Empty, error) {
	return next.Client(ctx).Close(ctx, conn, opts...)
}

// wireguardServer answers a WIREGUARD preference with its own side, once.
type wireguardServer struct{ tunnelIP net.IP }

func (s wireguardServer) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	parameters := request.GetConnection().GetMechanism().GetParameters()
	if parameters[wireguard.DstPublicKey] == "" {
		key, err := publicKey()
		if err != nil {
			return nil, err
		}
		parameters[wireguard.DstPublicKey] = key
	}
	parameters[wireguard.DstIP] = s.tunnelIP.String()
	parameters[wireguard.DstPort] = wireguardPort
	return next.Server(ctx).Request(ctx, request)
}

func (wireguardServer) Close(ctx context.Context, conn *networkservice.Connection) (*empty.Empty, error) {
	return next.Server(ctx).Close(ctx, conn)
}

func publicKey() (string, error) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(key.PublicKey().Bytes()), nil
}

// inNetNS puts a workload into the network namespace of a file; with an empty
// path it is the reference's kernel element, whose workload is its own thread.
type inNetNS struct {
	path, ifname string
}

func (n inNetNS) client() networkservice.NetworkServiceClient {
	if n.path == "" {
		return kernelmech.NewClient(kernelmech.WithInterfaceName(n.ifname))
	}
	return n
}

func (n inNetNS) server() networkservice.NetworkServiceServer {
	if n.path == "" {
		return kernelmech.NewServer(kernelmech.WithInterfaceName(n.ifname))
	}
	return inNetNSServer{n}
}

func (n inNetNS) Request(ctx context.Context, request *networkservice.NetworkServiceRequest, opts ...grpc.CallOption) (*networkservice.Connection, error) {
	preference := kernel.New("file://" + n.path)
	preference.Parameters[common.InterfaceNameKey] = n.ifname
	request.MechanismPreferences = []*networkservice.Mechanism{preference}
	return next.Client(ctx).Request(ctx, request, opts...)
}

func (n inNetNS) Close(ctx context.Context, conn *networkservice.Connection, opts ...grpc.CallOption) (*empty.Empty, error) {
	return next.Client(ctx).Close(ctx, conn, opts...)
}

type inNetNSServer struct{ inNetNS }

func (n inNetNSServer) Request(ctx context.Context, request *networkservice.NetworkServiceRequest) (*networkservice.Connection, error) {
	if m := request.GetConnection().GetMechanism(); m != nil {
		if m.Parameters == nil {
			m.Parameters = make(map[string]string)
		}
		m.Parameters[common.InodeURL] = "file://" + n.path
		m.Parameters[common.InterfaceNameKey] = n.ifname
	}
	return next.Server(ctx).Request(ctx, request)
}

func (n inNetNSServer) Close(ctx context.Context, conn *networkservice.Connection) (*empty.Empty, error) {
	return next.Server(ctx).Close(ctx, conn)
}
