// SPDX-License-Identifier: Apache-2.0

package authority

import (
	"context"
	"crypto/sha256"
	"math"
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
	now := time.Now()
	token := jointoken.Token{
		Secret: jointoken.NewSecret(), CA: a.issuer.signer(now).hash(), TrustDomain: a.td, Node: node, Addresses: a.advertise,
	}
	expires = now.Add(ttl)
	if err := a.ledger.create(token.Secret, node, now, expires); err != nil {
		return "", time.Time{}, err
	}
	a.log.Info("join token made", "node", node, "expires", expires)
	return token.Encode(), expires, nil
}

// Rotation is what became of the CA.
type Rotation struct {
	CA         [sha256.Size]byte // SHA-256 of the new one's certificate
	Signs      time.Time         // from then on it signs
	OldTrusted time.Time         // until then those before it are trusted
	Absent     []string          // nodes that have joined once and are not connected now
}

// RotateCA makes a new CA at once. It is trusted from now on, and signs after a
// time that lets every node learn of it; a node that is cut off for longer does not
// recognise new identities until it is back. The CAs before it stay trusted until
// all that they have signed has expired.
func (a *Authority) RotateCA(_ context.Context, after time.Duration) (Rotation, error) {
	if after < 0 || after > caAnnounce {
		return Rotation{}, nserr.BadFlag.Errorf("a CA cannot sign after %v", after).WithFix("choose at most %v", caAnnounce)
	}
	now := time.Now()
	signs := now.Add(after)
	cas, err := a.issuer.replace(now, signs, max(a.ttl, a.agentTTL))
	if err != nil {
		return Rotation{}, err
	}
	r := Rotation{CA: cas[len(cas)-1].hash(), Signs: signs, Absent: a.watchers.absent(a.ledger.nodes())}
	for _, old := range cas[:len(cas)-1] {
		if at := old.leavesAt(); at.After(r.OldTrusted) {
			r.OldTrusted = at
		}
	}
	a.log.Info("a new certificate of the authority was asked for", "trust_domain", a.td.Name(), "signs", signs, "count", len(cas))
	return r, nil
}

// admin serves nsm.identity.v1.Admin on the Unix socket.
type admin struct {
	identityv1.UnimplementedAdminServer
	authority *Authority
}

func (s admin) CreateToken(ctx context.Context, r *identityv1.CreateTokenRequest) (*identityv1.CreateTokenResponse, error) {
	if _, err := workload.Administrator(ctx, "make join tokens"); err != nil {
		return nil, err
	}
	seconds := min(max(r.GetTtlSeconds(), -1), int64(2*maxTokenTTL/time.Second)) // beyond either is refused all the same
	text, expires, err := s.authority.createToken(r.GetNode(), time.Duration(seconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return &identityv1.CreateTokenResponse{Token: text, Expires: expires.Unix()}, nil
}

func (s admin) RotateCA(ctx context.Context, r *identityv1.RotateCARequest) (*identityv1.RotateCAResponse, error) {
	if _, err := workload.Administrator(ctx, "rotate the CA"); err != nil {
		return nil, err
	}
	seconds := min(max(r.GetAfterSeconds(), -1), int64(2*caAnnounce/time.Second)) // likewise
	done, err := s.authority.RotateCA(ctx, time.Duration(seconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return &identityv1.RotateCAResponse{
		Ca: done.CA[:], Signs: done.Signs.Unix(), OldTrusted: done.OldTrusted.Unix(), Absent: done.Absent,
	}, nil
}

// RequestToken asks the authority behind a Workload API socket of this machine,
// a URL, for a join token: what "nsm token create" does. The parameters are
// those of [Authority.CreateToken].
func RequestToken(ctx context.Context, socket, node string, ttl time.Duration) (text string, expires time.Time, err error) {
	var answer *identityv1.CreateTokenResponse
	err = ask(socket, func(c identityv1.AdminClient) (err error) {
		answer, err = c.CreateToken(ctx, &identityv1.CreateTokenRequest{Node: node, TtlSeconds: seconds(ttl)})
		return err
	})
	if err != nil {
		return "", time.Time{}, err
	}
	return answer.GetToken(), time.Unix(answer.GetExpires(), 0), nil
}

// RequestRotation asks the authority behind such a socket for a new CA: what "nsm
// rotate ca" does. The parameter is that of [Authority.RotateCA].
func RequestRotation(ctx context.Context, socket string, after time.Duration) (Rotation, error) {
	var answer *identityv1.RotateCAResponse
	err := ask(socket, func(c identityv1.AdminClient) (err error) {
		answer, err = c.RotateCA(ctx, &identityv1.RotateCARequest{AfterSeconds: seconds(after)})
		return err
	})
	if err != nil {
		return Rotation{}, err
	}
	done := Rotation{Signs: time.Unix(answer.GetSigns(), 0), OldTrusted: time.Unix(answer.GetOldTrusted(), 0), Absent: answer.GetAbsent()}
	if copy(done.CA[:], answer.GetCa()) != len(done.CA) {
		return Rotation{}, nserr.BadAnswer.Errorf("the authority does not say what its new CA is")
	}
	return done, nil
}

func ask(socket string, call func(identityv1.AdminClient) error) error {
	conn, err := rpc.Dial(socket, rpc.DialOptions{Credentials: insecure.NewCredentials()})
	if err != nil {
		return err
	}
	defer conn.Close()
	err = call(identityv1.NewAdminClient(conn))
	if status.Code(err) == codes.Unimplemented {
		return nserr.NotAllowed.Errorf("the authority of this domain is not on this node").
			WithFix("run this on the node that other nodes joined")
	}
	return err
}

// seconds is a duration for a request, rounded up; what is negative is refused there.
func seconds(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return int64(math.Ceil(d.Seconds()))
}
