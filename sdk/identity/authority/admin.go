// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/sha256"
	"math"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	identityv1 "github.com/openvwire/nsm/proto/nsm/identity/v1"
	"github.com/openvwire/nsm/sdk/identity/jointoken"
	"github.com/openvwire/nsm/sdk/identity/workload"
	"github.com/openvwire/nsm/sdk/nserr"
	"github.com/openvwire/nsm/sdk/rpc"
)

const (
	defaultTokenTTL = 15 * time.Minute
	maxTokenTTL     = 24 * time.Hour
)

// CreateToken makes a token that lets one node join: node, or any new one if
// that is "". It is valid for ttl, at most 24 h; 0 = 15 minutes.
func (a *Authority) CreateToken(_ context.Context, node string, ttl time.Duration) (text string, err error) {
	text, _, err = a.createToken(node, ttl)
	return text, err
}

func (a *Authority) createToken(node string, ttl time.Duration) (text string, expires time.Time, err error) {
	if ttl == 0 {
		ttl = defaultTokenTTL
	}
	switch {
	case a.listener == nil:
		return "", time.Time{}, nserr.BadFlag.Errorf("no node can join: the authority does not listen for nodes").
			WithFix("start it with an address to listen on, such as %s", "tcp://:5007")
	case ttl < 0 || ttl > maxTokenTTL:
		return "", time.Time{}, nserr.BadFlag.Errorf("a join token cannot be valid for %v", ttl).
			WithFix("choose at most %v", maxTokenTTL)
	case node == a.node:
		return "", time.Time{}, nserr.NameOwned.Errorf("%s is the node of the authority itself", node)
	}
	if node != "" {
		if err := jointoken.CheckNode(node); err != nil {
			return "", time.Time{}, err
		}
	}
	server, err := a.server.GetX509SVID()
	if err != nil {
		return "", time.Time{}, err
	}
	root := server.Certificates[len(server.Certificates)-1] // as mintWithRoot has it
	token := jointoken.Token{
		Secret: jointoken.NewSecret(), CA: sha256.Sum256(root.Raw), TrustDomain: a.td, Node: node, Addresses: a.advertise,
	}
	now := time.Now()
	expires = now.Add(ttl)
	if err := a.ledger.create(token.Secret, node, now, expires); err != nil {
		return "", time.Time{}, err
	}
	a.log.Info("join token made", "node", node, "expires", expires)
	return token.Encode(), expires, nil
}

// admin serves nsm.identity.v1.Admin on the Unix socket.
type admin struct {
	identityv1.UnimplementedAdminServer
	authority *Authority
}

func (s admin) CreateToken(ctx context.Context, r *identityv1.CreateTokenRequest) (*identityv1.CreateTokenResponse, error) {
	caller, err := workload.CallerFrom(ctx)
	if err != nil {
		return nil, err
	}
	if caller.UID != 0 && int(caller.UID) != os.Geteuid() {
		return nil, nserr.NotAllowed.Errorf("user %d may not make join tokens", caller.UID).
			WithFix("run this as root, or as the user of the authority")
	}
	seconds := min(max(r.GetTtlSeconds(), -1), int64(2*maxTokenTTL/time.Second)) // beyond either is refused all the same
	text, expires, err := s.authority.createToken(r.GetNode(), time.Duration(seconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return &identityv1.CreateTokenResponse{Token: text, Expires: expires.Unix()}, nil
}

// RequestToken asks the authority behind a Workload API socket of this machine,
// a URL, for a join token: what "nsm token create" does. The parameters are
// those of [Authority.CreateToken].
func RequestToken(ctx context.Context, socket, node string, ttl time.Duration) (text string, expires time.Time, err error) {
	conn, err := rpc.Dial(socket, rpc.DialOptions{Credentials: insecure.NewCredentials()})
	if err != nil {
		return "", time.Time{}, err
	}
	defer conn.Close()
	seconds := int64(math.Ceil(ttl.Seconds()))
	if ttl < 0 {
		seconds = -1 // refused there
	}
	answer, err := identityv1.NewAdminClient(conn).CreateToken(ctx, &identityv1.CreateTokenRequest{Node: node, TtlSeconds: seconds})
	if status.Code(err) == codes.Unimplemented {
		return "", time.Time{}, nserr.NotAllowed.Errorf("the authority of this domain is not on this node").
			WithFix("run this on the node that other nodes joined")
	}
	if err != nil {
		return "", time.Time{}, err
	}
	return answer.GetToken(), time.Unix(answer.GetExpires(), 0), nil
}
