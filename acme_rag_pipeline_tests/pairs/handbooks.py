"""Small company handbooks in languages other than English, a document of passages each: (headings, text)."""

from __future__ import annotations

from acme_rag_pipeline.pairs.passage import Passage

Part = tuple[tuple[str, ...], str]

_DOCUMENTS: dict[str, list[Part]] = {
    "de/urlaub": [
        (
            ("Urlaub", "Urlaubsantrag stellen"),
            "Der Urlaubsantrag wird mindestens zwei Wochen vor dem ersten Urlaubstag im Personalportal gestellt. Die"
            " Führungskraft genehmigt den Antrag innerhalb von drei Arbeitstagen. Wenn Sie während des Urlaubs krank"
            " werden, müssen Sie am ersten Tag eine Arbeitsunfähigkeitsbescheinigung einreichen. Resturlaub verfällt am"
            " 31. März des folgenden Jahres, sofern er nicht aus dringenden betrieblichen Gründen übertragen wurde.",
        ),
        (
            ("Urlaub", "Fristen"),
            "| Anlass | Frist | Formular |\n|---|---|---|\n| Sonderurlaub | 5 Tage | HR-12 |\n| Umzug | 10 Tage | HR-14 |",
        ),
        (
            ("Urlaub", "Wie viele Urlaubstage habe ich im ersten Jahr?"),
            "Im ersten Jahr haben Sie 30 Urlaubstage. Wer erst im Juli anfängt, erhält die Hälfte davon.",
        ),
    ],
    "de/reisekosten": [
        (
            ("Reisekosten", "Belege"),
            "Alle Belege werden nach der Reise im Reiseportal hochgeladen. Ohne Beleg erstattet die Buchhaltung keine"
            " Übernachtung. Bei Verlust des Belegs füllen Sie das Formular RK-07 aus, das der Vorgesetzte unterschreibt."
            " Trinkgelder bis zu zehn Prozent sind erlaubt, z. B. in den USA. Das Betriebliche Eingliederungsmanagement"
            " hat damit nichts zu tun.",
        ),
        (
            ("Reisekosten", "Begriffe"),
            "- **Tagegeld**: pauschaler Betrag für Verpflegung auf einer Dienstreise von mehr als acht Stunden\n"
            "- **Kilometergeld**: Entschädigung für die Fahrt mit dem eigenen Wagen zum Kunden",
        ),
    ],
    "fr/conges": [
        (
            ("Congés payés", "Demande de congé"),
            "La demande de congé est déposée dans le portail RH au moins quinze jours avant le départ. L'employeur répond"
            " dans un délai de cinq jours ouvrés. Si vous tombez malade pendant vos congés, vous devez envoyer l'arrêt de"
            " travail dans les 48 heures. Les jours qui n'ont pas été pris avant le 31 mai sont perdus, sauf accord du"
            " Comité Social et Économique (CSE).",
        ),
        (
            ("Congés payés", "Délais"),
            "| Motif | Délai | Formulaire |\n|---|---|---|\n| Mariage | 4 jours | RH-21 |\n| Déménagement | 1 jour | RH-22 |",
        ),
    ],
    "fr/materiel": [
        (
            ("Matériel informatique", "Perte de l'ordinateur portable"),
            "En cas de perte de l'ordinateur portable, prévenez le service informatique dans l'heure. Le mot de passe est"
            " réinitialisé à distance et l'appareil est bloqué. Vous remplissez ensuite le formulaire IT-09 et vous le"
            " remettez à votre responsable, qui décide de l'achat d'un appareil de remplacement.",
        ),
    ],
    "es/viajes": [
        (
            ("Viajes de empresa", "Reserva de hoteles"),
            "Los hoteles se reservan en el portal de viajes con al menos siete días de antelación. El precio máximo es de"
            " 120 euros por noche en Madrid y de 95 euros en las demás ciudades. Si el hotel cuesta más, la dirección"
            " tiene que aprobar el gasto antes del viaje. No se reembolsan las facturas que no lleven el nombre de la"
            " empresa.",
        ),
        (
            ("Viajes de empresa", "¿Quién aprueba los viajes al extranjero?"),
            "Los viajes al extranjero los aprueba la dirección financiera cuando cuestan más de mil euros.",
        ),
    ],
    "it/malattia": [
        (
            ("Assenze", "Comunicazione della malattia"),
            "In caso di malattia il dipendente avvisa il responsabile prima delle nove del mattino. Il certificato medico"
            " viene inviato dall'ufficio del medico all'azienda entro due giorni. Durante la malattia il dipendente deve"
            " essere reperibile al proprio domicilio nelle fasce orarie previste dal contratto. Chi lavora all'estero"
            " consegna anche una traduzione del certificato.",
        ),
    ],
    "nl/thuiswerken": [
        (
            ("Thuiswerken", "Vergoeding voor de werkplek"),
            "Medewerkers die minstens twee dagen per week thuiswerken, krijgen een vergoeding voor hun werkplek. De"
            " aanvraag doe je in het personeelsportaal met een foto van de factuur. Je leidinggevende keurt de aanvraag"
            " binnen een week goed. De bureaustoel blijft eigendom van het bedrijf en wordt bij vertrek ingeleverd.",
        ),
    ],
    "pl/sprzet": [
        (
            ("Sprzęt służbowy", "Zgubiony laptop"),
            "Jeżeli pracownik zgubi laptop, zgłasza to w ciągu godziny do działu bezpieczeństwa. Dział blokuje urządzenie"
            " i zmienia hasło do poczty. Formularz BZ-03 podpisuje przełożony, który decyduje też o zakupie nowego"
            " urządzenia. Za uszkodzenia, które powstały z winy pracownika, firma może żądać odszkodowania.",
        ),
    ],
    "ru/otpusk": [
        (
            ("Отпуск", "Заявление на отпуск"),
            "Заявление на отпуск подаётся через кадровый портал не позднее чем за две недели до его начала. Руководитель"
            " утверждает заявление в течение трёх дней. Если сотрудник заболел во время отпуска, он должен отправить в"
            " отдел кадров больничный лист. Неиспользованные дни переносятся на следующий год по согласованию с"
            " руководителем.",
        ),
    ],
    "zh/qingjia": [
        (
            ("请假制度", "年假申请流程"),
            "员工应当提前两周在人事系统提交年假申请。部门主管在三个工作日内审批申请。未使用的年假可以结转到下一年的第一季度。"
            "病假需要提供医院的证明和诊断书。",
        ),
    ],
    "ja/kyuka": [
        (
            ("休暇制度", "有給休暇の申請"),
            "有給休暇は二週間前までに人事ポータルで申請してください。上司は三日以内に申請を承認します。"
            "休暇中に病気になった場合は、診断書を人事部に提出する必要があります。残った休暇は翌年の三月末に失効します。",
        ),
    ],
}  # fmt: skip

ENGLISH: list[Part] = [
    (
        ("Expenses", "Receipts"),
        "You must upload every receipt within 30 days after the trip. If you lose a receipt, contact the travel desk.",
    ),
    (("Expenses", "Rates"), "| City | Hotel limit |\n|---|---|\n| Denver | $199 |\n| Boston | $250 |"),
]


def _passages(name: str, parts: list[Part]) -> list[Passage]:
    return [
        Passage(f"{name}:{number}", f"{name}.md", headings[0], headings, text)
        for number, (headings, text) in enumerate(parts)
    ]


def handbook(language: str) -> list[Passage]:
    """All passages in one language of `LANGUAGES`, or in English (`en`)."""
    if language == "en":
        return _passages("en/expenses", ENGLISH)
    return [
        one for name, parts in _DOCUMENTS.items() if name.startswith(f"{language}/") for one in _passages(name, parts)
    ]


LANGUAGES = sorted({name.split("/")[0] for name in _DOCUMENTS})
